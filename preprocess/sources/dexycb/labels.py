"""Convert DexYCB's label files to labels and segmentation masks; runs in a worker.

A label file holds the hand and objects of one image in its camera frame. Data shared by a sequence
(calibration, objects, the subject's shape) is read once on opening and pickled with the job.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from model.hand import LEFT, RIGHT
from model.mano.files import ManoModels
from preprocess.labels.canonical import dexycb_hands, dexycb_objects, fill_hands
from preprocess.records import LabelStack, SourceError, empty_labels, stack_labels
from preprocess.sources.dexycb.arrays import HandLabel, read_depth, read_label, read_segmentation
from preprocess.sources.dexycb.files import NAME, Meta, read_meta

_HAND: Final = 255
"""Value of the hand in ``seg``, for either side."""
_STORED_HAND: Final = {LEFT: 254, RIGHT: 255}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recording:
    """Data shared by the rows of one sequence."""

    folder: str
    """``<subject>/<sequence>``."""
    meta: Meta
    K: Float64[np.ndarray, "c 3 3"]
    """Intrinsics by camera, in the order of ``meta.serials``."""
    T_world_from_cam: Float64[np.ndarray, "c 4 4"]
    betas: Float64[np.ndarray, " 10"] | None
    """None without MANO."""

    def file(self, root: Path, camera: int, kind: str, frame: int) -> Path:
        """Return the path of a file of one image; ``kind`` as in ``labels_%06d.npz``."""
        return root / self.folder / self.meta.serials[camera] / (kind % frame)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class View:
    """Rows of a job that show one sequence from one camera."""

    sequence: Recording
    camera: int
    frames: Int64[np.ndarray, " k"]
    rows: Int64[np.ndarray, " k"]
    """Output rows of the labels."""


def read_views(root: Path, views: Sequence[View], mano: ManoModels | None) -> LabelStack:
    """Return the labels of all rows of some views.

    Raises:
        SourceError: If a label file is missing or broken.
    """
    stack = stack_labels([empty_labels()] * sum(len(view.rows) for view in views))
    poses: dict[int, list[np.ndarray]] = {RIGHT: [], LEFT: []}  # by slot, one entry per view
    betas: dict[int, list[np.ndarray]] = {RIGHT: [], LEFT: []}
    rows: dict[int, list[np.ndarray]] = {RIGHT: [], LEFT: []}
    for view in views:
        labels = _fill_view(root, view, stack)
        slot = view.sequence.meta.slot
        pose_m = np.stack([label.pose_m for label in labels])
        seen = (pose_m != 0).any(1)
        if view.sequence.betas is not None:
            poses[slot].append(pose_m[seen])
            betas[slot].append(np.tile(view.sequence.betas, (int(seen.sum()), 1)))
            rows[slot].append(view.rows[seen])
    for slot in (RIGHT, LEFT):
        if mano is not None and rows[slot]:
            hands = dexycb_hands(
                mano, slot, np.concatenate(poses[slot]), np.concatenate(betas[slot])
            )
            fill_hands(stack, np.concatenate(rows[slot]), slot, hands)
    return stack


def _fill_view(root: Path, view: View, stack: LabelStack) -> list[HandLabel]:
    """Write all labels but MANO into the rows of a view; return its label files."""
    sequence, camera, rows = view.sequence, view.camera, view.rows
    num_objects = len(sequence.meta.ycb_ids)

    @functools.cache
    def read(frame: int) -> HandLabel:
        return read_label(sequence.file(root, camera, "labels_%06d.npz", frame), num_objects)

    labels = [read(int(frame)) for frame in view.frames]
    T = sequence.T_world_from_cam[camera]
    stack.K[rows] = sequence.K[camera]
    stack.T_world_from_cam[rows] = T
    joints = np.stack([label.joint_3d for label in labels]).astype(np.float64)
    annotated = (joints != -1).any((1, 2))
    slot = sequence.meta.slot
    stack.joints_3d[rows[annotated], slot] = joints[annotated]
    stack.joint_valid[rows[annotated], slot] = True
    stack.object_id[rows, :num_objects] = np.array(sequence.meta.ycb_ids) - 1
    stack.object_pose[rows, :num_objects] = dexycb_objects(np.stack([x.pose_y for x in labels]))
    stack.grasped_object[rows] = sequence.meta.grasp

    start = np.full((num_objects, 3), np.nan)  # camera frame
    for frame in range(sequence.meta.num_frames):
        unknown = np.isnan(start).any(1)
        if not unknown.any():
            break
        start[unknown] = dexycb_objects(read(frame).pose_y)[unknown, :, 3]
    stack.object_start[rows, :num_objects] = start @ T[:3, :3].T + T[:3, 3]
    return labels


# --- pictures -------------------------------------------------------------------------------------

_read_meta = functools.lru_cache(maxsize=16)(read_meta)


def read_picture(root: Path, image: str, kind: str) -> np.ndarray:
    """Read ``depth_mm`` or ``segmentation`` of one image, as defined in ``schema.PICTURES``.

    The hand's side and the objects come from ``meta.yml``, not from the labels: a hand without
    annotation may still be visible.

    Raises:
        SourceError: If a file is missing or broken, or the segmentation contains an object that the
            sequence does not have.
    """
    path = PurePosixPath(image)
    number = path.stem.removeprefix("color_")
    folder = root / path.parent
    if kind == "depth_mm":
        return read_depth(folder / f"aligned_depth_to_color_{number}.png")
    meta = _read_meta(folder.parent / "meta.yml")
    label_file = folder / f"labels_{number}.npz"
    seg = read_segmentation(label_file)
    stored = np.zeros(256, np.uint8)
    known = np.zeros(256, bool)
    stored[_HAND] = _STORED_HAND[meta.slot]
    for slot, ycb_id in enumerate(meta.ycb_ids):
        stored[ycb_id] = 1 + slot
    known[[0, _HAND, *meta.ycb_ids]] = True
    unknown = np.unique(seg[~known[seg]])
    if len(unknown):
        raise SourceError(
            f"{NAME}: the segmentation in {label_file} names {unknown.tolist()[:5]}, expected 0, "
            f"{_HAND} and the objects {list(meta.ycb_ids)} of its meta.yml; unpack the sequence "
            "again, or build without segmentation"
        )
    picture: np.ndarray = stored[seg]
    return picture
