"""Small stores of drawn frames with hand labels, for the pipeline's tests."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.store.schema import FLAGS, LABELS
from pipeline.store.shard import num_shards, rows_of_shard
from pipeline.store.writer import create_store, finish_store, write_image_shard, write_rows
from tests.pipeline.stores import toy_attributes

HEIGHT, WIDTH = 96, 128
K = np.array([[150.0, 0.5, 63.0], [0, 140.0, 47.0], [0, 0, 1]])


def has_hand(row: int, slot: int) -> bool:
    """Right hands in three rows of four, left hands in every second one."""
    return row % 4 != 3 if slot == 0 else row % 2 == 1


def frame(row: int) -> NDArray[np.uint8]:
    """Smooth RGB noise, different in every row, so that JPEG keeps it within a few grey levels."""
    rng = np.random.default_rng(row)
    noise = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8)
    return cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def jpeg(image: NDArray[np.uint8], *, progressive: bool = False) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    written, data = cv2.imencode(".jpg", image[..., ::-1], options)
    assert written
    return data.tobytes()


def labels(
    row: int, runs: int = 0, has_hand: Callable[[int, int], bool] = has_hand
) -> dict[str, NDArray[Any]]:
    """Labels of one row: hands of 8 cm somewhere in the frame, half a metre away."""
    rng = np.random.default_rng([row, 1])
    values = {spec.name: np.full(spec.shape, spec.fill, spec.dtype) for spec in LABELS}
    values |= {"K": K, "quality": np.array(0), "official_valid": np.ones(3, bool)}
    values |= {
        f"{n}_idx": np.array(row // runs if runs else row % 2)
        for n in ("sequence", "camera", "subject")
    }
    values |= {"frame_idx": np.array(row), "official_idx": np.array(row)}
    values |= grasped_object(row)
    for slot in range(2):
        if not has_hand(row, slot):
            continue
        joints = rng.normal([rng.uniform(-0.1, 0.1), 0.0, 0.5], 0.02, (21, 3))
        uvw = joints @ K.T
        uv = uvw[:, :2] / uvw[:, 2:]
        values["bbox_xyxy"][slot] = [*uv.min(0), *uv.max(0)]
        values["joints_3d"][slot], values["joint_valid"][slot] = joints, True
        values["joints_3d"][slot, 7], values["joint_valid"][slot, 7] = np.nan, False
        values["has_joints"][slot] = True
        if row % 3 == 0:
            continue  # a hand without MANO
        values["theta"][slot] = rng.normal(0, 0.5, 48)
        for name in ("beta", "transl", "root_rest"):
            values[name][slot] = rng.normal(0, 0.1, values[name].shape[1:])
        values["has_mano"][slot] = values["has_beta"][slot] = True
    return values


def grasped_object(row: int) -> dict[str, NDArray[Any]]:
    """The object in slot 1 of every row but each fifth, a box of 5 to 30 pixels in the frame."""
    if row % 5 == 4:
        return {}
    rng = np.random.default_rng([row, 2])
    object_id, has_object = np.full(10, -1, np.int32), np.zeros(10, bool)
    pose, box = np.full((10, 3, 4), np.nan), np.full((10, 4), np.nan)
    object_id[1], has_object[1] = 3, True
    pose[1] = np.c_[np.eye(3), [0.02, 0.01, 0.5]]
    low = rng.uniform([10, 10], [80, 60])
    box[1] = [*low, *(low + rng.uniform(5, 30, 2))]
    return {
        "object_id": object_id,
        "has_object": has_object,
        "object_pose": pose,
        "object_bbox_xyxy": box,
        "grasped_object": np.array(1, np.int16),
    }


def hand_store(
    path: Path,
    num_rows: int = 12,
    *,
    shard_rows: int = 5,
    images: Mapping[int, bytes] | None = None,
    unreadable: tuple[int, ...] = (),
    size_hw: tuple[int, int] = (HEIGHT, WIDTH),
    attributes: Mapping[str, Any] | None = None,
    runs: int = 0,
    has_hand: Callable[[int, int], bool] = has_hand,
    splits: Mapping[str, Sequence[int]] | None = None,
    edit: Callable[[int, dict[str, NDArray[Any]]], None] | None = None,
    **changes: Any,
) -> Path:
    """Build a finished store of ``num_rows`` frames.

    Args:
        path: Where.
        num_rows: Frames.
        shard_rows: Frames of a shard.
        images: JPEG bytes that replace the frame of a row.
        unreadable: Rows without an image.
        size_hw: Of every frame.
        attributes: Of the store that replace the toy ones.
        runs: Frames of a sequence, one after another; 0 = two sequences in turn.
        has_hand: Which hands are in a row.
        splits: Row lists that replace train (all) and val (backwards, every second).
        edit: Changes the drawn labels of a row in place.
        changes: Labels of every row that replace the drawn ones.
    """
    tables = {"sequence": ["wave", "grasp"], "camera": ["c0", "c1"]}
    given = {"tables": tables, "flags": FLAGS, **(attributes or {})}
    made = toy_attributes(num_rows, shard_rows, **given)
    lists = splits or {"train": range(num_rows), "val": range(num_rows)[::-2]}
    create_store(path, made, {name: np.array(rows) for name, rows in lists.items()})
    for shard in range(num_shards(made)):
        rows = rows_of_shard(made, shard)
        jpegs = [(images or {}).get(row, jpeg(frame(row))) for row in rows]
        jpegs = [b"" if row in unreadable else j for row, j in zip(rows, jpegs, strict=True)]
        offset, length, crc32c = write_image_shard(path, shard, jpegs, made)
        columns: dict[str, NDArray[Any]] = {
            "image/offset": offset,
            "image/length": length,
            "image/crc32c": crc32c,
            "image/size_hw": np.array([size_hw] * len(rows), np.uint16),
        }
        per_row = [labels(row, runs, has_hand) | changes for row in rows]
        for values, row in zip(per_row, rows, strict=True):
            if edit is not None:
                edit(row, values)
            values["sample_ok"] = np.array(row not in unreadable)
        for spec in LABELS:
            stacked = np.stack([np.asarray(values[spec.name]) for values in per_row])
            columns[f"labels/{spec.name}"] = stacked.astype(spec.dtype)
        write_rows(path, shard, columns)
    finish_store(path, made)
    return path
