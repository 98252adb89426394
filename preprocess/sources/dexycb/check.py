"""Consistency check of DexYCB's files before a build.

Reads ``pose.npz`` and one label file of each sequence. It affects no row: labels come from
``labels_*.npz``, and ``pose.npz`` is known to be centimetres off in some sequences (dex-ycb-toolkit
issue 26). The result goes into the notes of the report.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from model.hand import LEFT, STANDARD_FROM_MANO21, TIP_VERTICES
from model.mano.convert import pca_to_axis_angle
from model.mano.files import ManoArrays, ManoModels, mano_forward
from preprocess.records import SourceError
from preprocess.sources.dexycb.arrays import HandLabel, read_label, read_pose
from preprocess.sources.dexycb.labels import Recording

_APART_M: Final = 5e-3
_THREADS: Final = 16  # hides the latency of a network disk, about a millisecond per file


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """Check result of one sequence; None if a file is missing or broken, or there is no hand."""

    pose_error: str | None = None
    """Reason why ``pose.npz`` cannot be used."""
    no_hand: int = 0
    """Number of time steps without a hand, by ``pose.npz``."""
    label: HandLabel | None = None
    """Label of the first camera, in the first time step with a hand."""
    apart_m: float | None = None
    """Largest distance of the wrist or an object between the two files at that time step, metres.
    """


def cross_check(
    root: Path, sequences: Sequence[Recording], mano: ManoModels | None
) -> dict[str, Any]:
    """Return the report's notes on the consistency of the files; never raises for a file."""
    with ThreadPoolExecutor(_THREADS) as pool:
        checked = list(pool.map(lambda sequence: _check(root, sequence), sequences))
    errors = [c.pose_error for c in checked if c.pose_error is not None]
    apart = [c.apart_m for c in checked if c.apart_m is not None]
    notes: dict[str, Any] = {
        "pose_npz_unusable": len(errors),
        "time_steps": sum(sequence.meta.num_frames for sequence in sequences),
        "time_steps_without_hand": sum(c.no_hand for c in checked),
        "first_labels_compared": len(apart),
        "first_labels_over_5_mm_from_pose_npz": sum(value > _APART_M for value in apart),
        "first_labels_largest_distance_m": max(apart, default=None),
    }
    if errors:
        notes["pose_npz_first_error"] = errors[0]
    if mano is not None:
        notes["decoded_joints_largest_distance_m"] = _decoded_apart(sequences, checked, mano)
    return notes


def _check(root: Path, sequence: Recording) -> _Checked:
    try:
        pose_m, pose_y = read_pose(root / sequence.folder / "pose.npz", sequence.meta)
    except SourceError as error:
        return _Checked(pose_error=str(error))
    seen = (pose_m != 0).any(1)
    no_hand = int((~seen).sum())
    if not seen.any():
        return _Checked(no_hand=no_hand)
    frame = int(seen.argmax())
    path = sequence.file(root, 0, "labels_%06d.npz", frame)
    try:
        label = read_label(path, len(sequence.meta.ycb_ids))
    except SourceError:
        return _Checked(no_hand=no_hand)  # the build itself will report this file
    apart = _largest_distance(sequence.T_world_from_cam[0], label, pose_m[frame], pose_y[frame])
    return _Checked(no_hand=no_hand, label=label, apart_m=apart)


def _largest_distance(
    T_world_from_cam: Float[np.ndarray, "4 4"],
    label: HandLabel,
    pose_m: Float[np.ndarray, " 51"],
    pose_y: Float[np.ndarray, "o 7"],
) -> float | None:
    """Return the largest distance of wrist and shared objects between the two files, metres."""
    R, t = T_world_from_cam[:3, :3], T_world_from_cam[:3, 3]
    distances = []
    if (label.pose_m != 0).any() and (label.joint_3d != -1).any():
        # joint 0 = J0 + translation in either frame, so J0 follows without MANO.
        rest_wrist = label.joint_3d[0] - label.pose_m[48:]
        distances.append(np.linalg.norm(R @ label.joint_3d[0] + t - pose_m[48:] - rest_wrist))
    for ours, theirs in zip(label.pose_y, pose_y, strict=True):
        if ours.any() and theirs[4:].any():
            distances.append(np.linalg.norm(R @ ours[:, 3] + t - theirs[4:]))
    return float(max(distances)) if distances else None


def _decoded_apart(
    sequences: Sequence[Recording], checked: Sequence[_Checked], mano: ManoModels
) -> float | None:
    """Return the largest error of the decoded joints against ``joint_3d``: detects a wrong MANO."""
    largest: list[float] = []
    for sequence, check in zip(sequences, checked, strict=True):
        label = check.label
        if label is None or sequence.betas is None:
            continue
        if not (label.pose_m.any() and (label.joint_3d != -1).any()):
            continue
        is_left = sequence.meta.slot == LEFT
        own = mano.left_as_shipped if is_left else mano.right
        joints = _decode(own, label.pose_m, sequence.betas, is_left=is_left)
        largest.append(float(np.linalg.norm(joints - label.joint_3d, axis=-1).max()))
    return max(largest, default=None)


def _decode(
    own: ManoArrays,
    pose_m: Float[np.ndarray, " 51"],
    betas: Float[np.ndarray, " 10"],
    *,
    is_left: bool,
) -> Float[np.ndarray, "21 3"]:
    """Decode the 21 joints as manopth does, standard order."""
    pose = pose_m.astype(np.float64)[None]
    theta = np.concatenate((pose[:, :3], pca_to_axis_angle(own, pose[:, 3:48])), axis=1)
    vertices, skeleton = mano_forward(own, theta, betas[None], pose[:, 48:])
    tips = TIP_VERTICES["manopth"]
    chosen = vertices[0, list(tips.left if is_left else tips.right)]
    joints: np.ndarray = np.concatenate((skeleton[0], chosen))[list(STANDARD_FROM_MANO21)]
    return joints
