"""Hand-object interaction class, from contact and motion around a frame.

Shape legend: n = requested rows, 2 = hands (right, left).
"""

from enum import IntEnum
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from pipeline.store.reader import Store

REACH: Final = 2
"""Frames before and after a row between which its motion is measured."""
STILL_M_PER_S: Final = 0.02
"""Speed below which an object is at rest."""


class Interaction(IntEnum):
    """Interaction class of one hand."""

    none = 0
    touch = 1
    """In contact with an object that is at rest, or does not move with the hand."""
    hold = 2
    """In contact with an object that moves with the hand."""
    both_hold = 3
    """Both hands hold the same object."""


def interaction(
    store: Store, rows: NDArray[np.int64], *, frames_per_s: float = 30.0
) -> tuple[Int64[np.ndarray, "n 2"], Bool[np.ndarray, "n 2"]]:
    """Return the ``Interaction`` of each hand, and where it is known.

    Unknown: without contact labels; in contact without the camera's pose in the world; where one
    of the ``REACH`` frames before and after is not in the store. A hand in contact is holding if
    the object's origin moves faster than ``STILL_M_PER_S`` in the world and the wrist moves at less
    than half that speed relative to it.

    Args:
        store: The open store; rows sorted by sequence, camera, frame.
        rows: Rows of the store.
        frames_per_s: Frame rate of its sequences.
    """
    before, after = (np.clip(rows + step, 0, store.num_rows - 1) for step in (-REACH, REACH))
    stride = _frame_stride(store, rows)
    is_run = np.ones(len(rows), bool)
    for name, apart in (("sequence_idx", 0), ("camera_idx", 0), ("frame_idx", REACH * stride)):
        column = store.label(name).astype(np.int64)
        is_run &= column[rows] - column[before] == apart
        is_run &= column[after] - column[rows] == apart
    seconds = 2 * REACH * stride / frames_per_s

    slot = store.label("contact_object")[rows].astype(np.int64)
    touches = store.label("in_contact")[rows] & (slot >= 0)
    is_known = store.label("has_contact")[rows] & is_run[:, None]
    ends = [_in_world(store, at, slot) for at in (before, after)]
    with np.errstate(invalid="ignore", divide="ignore"):
        object_move, hand_move = (ends[1][i] - ends[0][i] for i in range(2))
        speed = np.linalg.norm(object_move, axis=-1) / seconds[:, None]
        relative = np.linalg.norm(hand_move - object_move, axis=-1) / seconds[:, None]
        holds = touches & (speed > STILL_M_PER_S) & (relative < speed / 2)
    is_known &= ~touches | np.isfinite(speed + relative)
    both = holds.all(1) & (slot[:, 0] == slot[:, 1]) & is_known.all(1)
    found = np.where(touches, Interaction.touch, Interaction.none)
    found = np.where(holds, np.where(both[:, None], Interaction.both_hold, Interaction.hold), found)
    return np.where(is_known, found, Interaction.none).astype(np.int64), is_known


def _frame_stride(store: Store, rows: NDArray[np.int64]) -> Int64[np.ndarray, " n"]:
    """Return the smallest step of ``frame_idx`` within each row's sequence, 1 where it has none."""
    sequence, camera, frame = (
        store.label(f"{name}_idx").astype(np.int64) for name in ("sequence", "camera", "frame")
    )
    same = (np.diff(sequence) == 0) & (np.diff(camera) == 0)
    step = np.where(same, np.diff(frame), np.iinfo(np.int64).max)
    smallest = np.full(int(sequence.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, sequence[:-1], step)
    found = smallest[sequence[rows]]
    return np.where(found == np.iinfo(np.int64).max, 1, found)


def _in_world(
    store: Store, rows: NDArray[np.int64], slot: NDArray[np.int64]
) -> tuple[Float64[np.ndarray, "n 2 3"], Float64[np.ndarray, "n 2 3"]]:
    """Return each hand's object origin and wrist, world frame, metres; NaN where unknown."""
    T = store.label("T_world_from_cam")[rows].astype(np.float64)
    T = np.where(store.label("has_world")[rows][:, None, None], T, np.nan)
    each = rows[:, None], slot.clip(0)
    posed = store.label("has_object")[each] & (slot >= 0)
    origin = store.label("object_pose")[(*each, slice(None), 3)].astype(np.float64)
    origin = np.where(posed[..., None], origin, np.nan)
    wrist = store.label("joints_3d")[rows, :, 0].astype(np.float64)
    wrist = np.where(store.label("joint_valid")[rows, :, 0, None], wrist, np.nan)
    origin, wrist = (
        np.einsum("nij,nhj->nhi", T[:, :3, :3], points) + T[:, None, :3, 3]
        for points in (origin, wrist)
    )
    return origin, wrist
