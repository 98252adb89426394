"""A small store with objects in various states, for tests of contact sheet and report page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.store.objects import ObjectShape
from pipeline.store.schema import FLAGS, LABELS
from pipeline.store.writer import create_store, finish_store, write_image_shard, write_rows
from tests.pipeline import hand_store
from tests.pipeline.stores import toy_attributes

BOX_SIDES = (0.06, 0.1, 0.16)
TURN = Rotation.from_rotvec([0.3, 0.6, 0.15]).as_matrix()
POSES: dict[int, dict[int, tuple[int, tuple[float, float, float]]]] = {
    0: {0: (0, (0.02, 0.01, 0.6)), 1: (1, (-0.16, -0.02, 0.7))},  # row: slot: object, place
    1: {2: (0, (0.0, 0.0, 0.5))},
    2: {0: (0, (np.nan, np.nan, np.nan))},
    3: {0: (0, (0.0, 0.0, -0.5)), 1: (1, (0.0, 0.0, 0.02))},
    4: {0: (1, (3.0, 0.0, 0.6))},
    5: {},
}
"""Seen twice; seen once; no pose; behind and through the plane of the camera; off image; none."""
GRASPED = {0: 0}


def shape(name: str, mesh: trimesh.Trimesh) -> ObjectShape:
    vertices = np.asarray(mesh.vertices, np.float32)
    between = vertices[:, None].astype(np.float64) - vertices[None]
    return ObjectShape(
        name=name,
        diameter_m=float(np.linalg.norm(between, axis=-1).max()),
        points=np.resize(vertices, (2048, 3)),
        normals=np.tile(np.array([0, 0, 1], np.float32), (2048, 1)),
        part_id=np.zeros(2048, np.int8),
        symmetries=np.eye(3, 4, dtype=np.float32)[None],
        sdf=np.zeros((64, 64, 64), np.float16),
        sdf_box=np.array([[-0.1] * 3, [0.1] * 3], np.float32),
        vertices=vertices,
        vertex_part=np.zeros(len(vertices), np.int8),
        faces=np.asarray(mesh.faces, np.int32),
    )


BOX = shape("box", trimesh.creation.box(BOX_SIDES))
BALL = shape("ball", trimesh.creation.icosphere(subdivisions=3, radius=0.04))


def pose(place: tuple[float, float, float]) -> NDArray[np.float64]:
    return np.column_stack([TURN, place])


def object_store(
    path: Path,
    *,
    objects: tuple[ObjectShape, ...] = (BOX, BALL),
    image: NDArray[np.uint8] | None = None,
    hands: bool = True,
    mano_sha256: str = "",
    pictures: Mapping[str, NDArray[Any]] | None = None,
    **changes: Any,
) -> Path:
    """Build a finished store of one row per entry of ``POSES``.

    Args:
        path: Folder of the store.
        objects: Shapes to write; the table of names is the same without them.
        image: The frame of every row; None: drawn frames.
        hands: Whether rows have hands.
        mano_sha256: Value for the attributes.
        pictures: Depth and segmentation of every row, by name.
        changes: Labels of every row.
    """
    from pipeline.store.pictures import write_pictures

    pictures = pictures or {}
    tables = {"sequence": ["wave", "grasp"], "camera": ["c0", "c1"], "object": ["box", "ball"]}
    made = toy_attributes(
        len(POSES), len(POSES), tables=tables, flags=FLAGS, mano_sha256=mano_sha256,
        flag_counts=dict.fromkeys(FLAGS, 0),
    )  # fmt: skip
    sizes = {name: (picture.shape[0], picture.shape[1]) for name, picture in pictures.items()}
    create_store(path, made, {"train": np.arange(len(POSES))}, objects=objects, pictures=sizes)
    frames = [hand_store.frame(row) if image is None else image for row in POSES]
    offset, length, crc32c = write_image_shard(path, 0, [hand_store.jpeg(f) for f in frames], made)
    columns: dict[str, NDArray[Any]] = {
        "image/offset": offset,
        "image/length": length,
        "image/crc32c": crc32c,
        "image/size_hw": np.array([f.shape[:2] for f in frames], np.uint16),
    }
    rows = [labels(row, hands=hands) | changes for row in POSES]
    for spec in LABELS:
        stacked = np.stack([np.asarray(values[spec.name]) for values in rows])
        columns[f"labels/{spec.name}"] = stacked.astype(spec.dtype)
    write_rows(path, 0, columns)
    for name, picture in pictures.items():
        write_pictures(path, 0, name, [picture] * len(POSES), made)
    finish_store(path, made)
    return path


def labels(row: int, *, hands: bool) -> dict[str, NDArray[Any]]:
    values = hand_store.labels(row, has_hand=lambda row, slot: hands and slot == 0)
    values["sample_ok"] = np.ones((), bool)
    values["grasped_object"] = np.array(GRASPED.get(row, -1))
    for slot, (object_id, place) in POSES[row].items():
        values["object_id"][slot] = object_id
        values["object_pose"][slot] = pose(place)
        values["has_object"][slot] = np.isfinite(place).all()
    return values
