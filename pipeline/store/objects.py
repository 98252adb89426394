"""Objects of a store: their shapes, and which one the hands of a row act on.

Shapes are one Zarr group ``objects/<name>`` each, arrays as in the schema.

Arrays are one chunk each. zstd has a checksum and no valid array contains the fill value, so a
corrupted or missing chunk is detected on reading.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
import zarr.codecs
from jaxtyping import Float16, Float32, Int8, Int32, Int64
from numpy.typing import NDArray

from pipeline.app.words import closest
from pipeline.store.errors import StoreError
from pipeline.store.image_bytes import open_array, rebuild
from pipeline.store.reader import Store, read_attributes
from pipeline.store.schema import NUM_OBJECTS, OBJECT_ARRAYS
from pipeline.store.shard import corrupt

GROUP: Final = "objects"
DIAMETER: Final = "diameter_m"
OBJECT_NAME: Final = re.compile(r"\w[\w.-]*", re.ASCII)
_ROTATION_TOLERANCE: Final = 1e-4
"""Largest entry of ``S S^T - I``; a rotation in float32 has 1e-6."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObjectShape:
    """The shape of one object in its own frame; arrays as in ``schema.OBJECT_ARRAYS``, metres."""

    name: str
    diameter_m: float
    """Largest distance of two vertices, metres."""
    points: Float32[np.ndarray, "2048 3"]
    normals: Float32[np.ndarray, "2048 3"]
    part_id: Int8[np.ndarray, " 2048"]
    symmetries: Float32[np.ndarray, "s 3 4"]
    """``[S | s]``, the identity first."""
    sdf: Float16[np.ndarray, "64 64 64"]
    sdf_box: Float32[np.ndarray, "2 3"]
    vertices: Float32[np.ndarray, "v 3"]
    vertex_part: Int8[np.ndarray, " v"]
    faces: Int32[np.ndarray, "f 3"]


def write_object(group: zarr.Group, shape: ObjectShape) -> None:
    """Write one shape; equal shapes give byte-identical files.

    Args:
        group: The store's group ``objects``.
        shape: What to write, as ``<group>/<name>``.

    Raises:
        StoreError: If the group already has this object, or the shape violates the schema; lists
            all problems.
    """
    problems = _problems(shape)
    if not OBJECT_NAME.fullmatch(shape.name):
        problems.insert(0, "its name must be letters, digits, '_', '-', '.'")
    elif shape.name in group:
        problems.insert(0, "the store has it already")
    if problems:
        raise StoreError(f"object {shape.name!r}: {'; '.join(problems)}")
    own = group.create_group(shape.name, attributes={DIAMETER: float(shape.diameter_m)})
    zstd = zarr.codecs.ZstdCodec(level=3, checksum=True)
    for name, dtype, _, meaning in OBJECT_ARRAYS:
        values = getattr(shape, name)
        array = own.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=dtype,
            fill_value=float("nan") if np.dtype(dtype).kind == "f" else -1,
            compressors=zstd,
            attributes={"meaning": meaning},
        )
        array[...] = values


def read_object(path: Path, name: str) -> ObjectShape:
    """Return the shape ``name`` of the store at ``path``, checked.

    Raises:
        StoreError: If the store has no such object; lists the choices.
        StoreCorruptError: If it is damaged.
    """
    names = object_names(path)
    if name not in names:
        near = closest(name, names)
        raise StoreError(
            f"store {path} has no object {name!r}"
            + (f", did you mean {near!r}?" if near else "")
            + f"; objects: {', '.join(names) or 'none'}"
        )
    folder = path / GROUP / name
    cure = rebuild(read_attributes(path, allow_unfinished=True))
    arrays: dict[str, NDArray[Any]] = {}
    try:
        diameter_m = float(zarr.open_group(folder, mode="r").attrs[DIAMETER])  # type: ignore[arg-type]
        for array, *_ in OBJECT_ARRAYS:
            arrays[array] = np.asarray(open_array(path, f"{GROUP}/{name}/{array}", cure)[...])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, StoreError):
            raise
        # zarr-python and its codecs raise arbitrary exceptions on damaged files.
        raise corrupt(
            folder, "an object's shape", f"{type(error).__name__}: {error}", cure
        ) from error
    shape = ObjectShape(name=name, diameter_m=diameter_m, **arrays)
    if problems := _problems(shape):
        raise corrupt(folder, "an object's shape", "; ".join(problems), cure)
    return shape


def object_names(path: Path) -> tuple[str, ...]:
    """Return the names of the objects of the store at ``path``, sorted; empty if it has none."""
    return tuple(sorted(file.parent.name for file in (path / GROUP).glob("*/zarr.json")))


def acted_on(store: Store, rows: NDArray[np.int64]) -> Int64[np.ndarray, " n"]:
    """Return the slot of the object that the hands of each row act on; -1 without a posed object.

    The one rule for it: a batch's ``object_*`` labels are this object's, and the crop of the
    ``hand_object`` view surrounds it. In this order, of the objects with a pose:

    1. ``grasped_object``, what the dataset tells of the sequence;
    2. ``contact_object`` of the right hand, then of the left: what its vertices are nearest to;
    3. the lowest slot.
    """
    has_object = store.label("has_object")[rows]
    candidates = np.concatenate(
        (
            store.label("grasped_object")[rows][:, None],
            np.where(store.label("has_contact")[rows], store.label("contact_object")[rows], -1),
        ),
        1,
    ).astype(np.int64)
    chosen = np.where(has_object.any(1), has_object.argmax(1), -1)
    for slot in candidates.T[::-1]:
        inside = (slot >= 0) & (slot < NUM_OBJECTS)
        is_posed = inside & np.take_along_axis(has_object, slot.clip(0)[:, None], 1)[:, 0]
        chosen = np.where(is_posed, slot, chosen)
    return chosen


def _problems(shape: ObjectShape) -> list[str]:
    """Return the problems of a shape's values."""
    problems = []
    for name, dtype, expected, _ in OBJECT_ARRAYS:
        values = getattr(shape, name)
        fits = values.ndim == len(expected) and all(
            length == want if want else length > 0
            for length, want in zip(values.shape, expected, strict=True)
        )
        if values.dtype != dtype or not fits:
            want = str(expected).replace("(0,", "(n,")
            problems.append(f"{name} must be {dtype} {want}, got {values.dtype} {values.shape}")
        elif not np.isfinite(values).all():
            problems.append(f"{name} must be finite")
    if not (np.isfinite(shape.diameter_m) and shape.diameter_m > 0):
        problems.append(f"{DIAMETER} must be positive metres, got {shape.diameter_m}")
    return problems or _contradictions(shape)


def _contradictions(shape: ObjectShape) -> list[str]:
    """Return the inconsistencies of a shape whose arrays have valid types and shapes."""
    S = shape.symmetries[:, :, :3].astype(np.float64)
    off = np.abs(S @ S.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    turns = (off < _ROTATION_TOLERANCE) & (np.linalg.det(S) > 0)
    num_vertices = len(shape.vertices)
    sides = np.diff(shape.sdf_box.astype(np.float64), axis=0)[0]
    checks = {
        "symmetries must begin with the identity": np.array_equal(
            shape.symmetries[0], np.eye(3, 4, dtype=np.float32)
        ),
        f"symmetries must be rotations, {np.count_nonzero(~turns)} are not": turns.all(),
        f"faces must lie in 0..{num_vertices - 1}, got {shape.faces.min()}..{shape.faces.max()}": (
            shape.faces.min() >= 0 and shape.faces.max() < num_vertices
        ),
        "part_id and vertex_part must be 0 or 1": (
            min(shape.part_id.min(), shape.vertex_part.min()) >= 0
            and max(shape.part_id.max(), shape.vertex_part.max()) <= 1
        ),
        f"vertex_part must have {num_vertices} values, got {len(shape.vertex_part)}": (
            len(shape.vertex_part) == num_vertices
        ),
        f"sdf_box must span a cube, got sides {sides.tolist()}": (
            sides.min() > 0 and np.allclose(sides, sides[0], rtol=1e-4)
        ),
    }
    return [problem for problem, holds in checks.items() if not holds]
