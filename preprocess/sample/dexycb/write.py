"""Synthetic DexYCB: the official files, filled with rendered synthetic hands and objects.

Layout as in DexYCB: ``<subject>/<sequence>/`` with ``meta.yml``, ``pose.npz`` and per camera
``color_*.jpg``, ``aligned_depth_to_color_*.png``, ``labels_*.npz``; ``calibration`` and ``models``
beside the subjects. Hands are fitted with MANO's left model as shipped, poses are 45 coefficients,
joints have manopth's fingertips. The scenes and their pitfalls are in ``dexycb.scene``.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from model.mano.convert import axis_angle_to_pca
from preprocess.camera import pixels
from preprocess.sample.dexycb.scene import (
    MASTER,
    SERIALS,
    SIZE_HW,
    GraspPlan,
    T_world_from_cam,
    Truth,
    intrinsics,
    plans,
    pose_npz_shift,
    scene_of,
    shape_of,
    table_cameras,
    truth_of,
)
from preprocess.sample.hand.curl import shipped_or_fixed
from preprocess.sample.objects.ycb import write_models
from preprocess.sample.picture_file import save_picture
from preprocess.sample.processes import in_processes
from preprocess.sample.render.hand_object import HAND, RenderedFrame, render_frame

_JPEG: Final = (
    *(cv2.IMWRITE_JPEG_QUALITY, 90),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
)
_PNG: Final = (cv2.IMWRITE_PNG_COMPRESSION, 3)


def write(
    out: Path,
    num: int,
    seed: int,
    num_eval: int | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Write a sample; returns the number of images.

    Args:
        out: Target folder; the root of the dataset.
        num: Images; rounded up to the eight cameras of a time step.
        seed: Any non-negative integer.
        num_eval: Not used: DexYCB's splits are rules over the same images.
        workers: Processes; 0: one per core.
        progress: Called with (done, total) images.
    """
    del num_eval
    sequences = plans(seed, num)
    tasks = [
        (plan.number, serial, frame)
        for plan in sequences
        for serial in SERIALS
        for frame in range(plan.num_frames)
    ]
    _write_calibration(out / "calibration", seed, sequences)
    write_models(out, sorted({name for plan in sequences for name in plan.object_names}))
    # One process renders a whole sequence.
    chunk = len(SERIALS) * max(plan.num_frames for plan in sequences)
    written = in_processes(
        partial(_write_task, out, seed, num), tasks, workers, progress, chunk=chunk
    )
    count = sum(1 for _ in written)
    (out / sequences[0].subject / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    return {"images": count}


def _write_task(out: Path, seed: int, num: int, task: tuple[int, str, int]) -> None:
    """One image; at module level so that a spawned process can import it."""
    number, serial, frame = task
    plan = plans(seed, num)[number]
    folder = out / plan.folder / serial
    folder.mkdir(parents=True, exist_ok=True)
    if serial == SERIALS[0] and frame == 0:
        _write_sequence(out, seed, num, plan)
    picture = render_frame(
        scene_of(seed, num, number),
        frame,
        intrinsics(seed, serial),
        table_cameras(seed, plan.subject)[serial],
        SIZE_HW,
        look_key=(seed, 300, 5, number),
    )
    save_picture(folder / f"color_{frame:06d}.jpg", picture.rgb[:, :, ::-1], _JPEG)
    depth_mm = np.round(picture.depth_m * 1000.0).astype(np.uint16)
    save_picture(folder / f"aligned_depth_to_color_{frame:06d}.png", depth_mm, _PNG)
    label = label_of(truth_of(seed, num, plan, serial, frame), picture)
    np.savez_compressed(folder / f"labels_{frame:06d}.npz", allow_pickle=False, **label)


# --- labels ---------------------------------------------------------------------------------------


def label_of(true: Truth, picture: RenderedFrame) -> dict[str, np.ndarray]:
    """Return the arrays of a ``labels_*.npz``."""
    pose_y = np.where(true.posed[:, None, None], true.T_cam_from_obj[:, :3], 0.0)
    pose_m, joint_3d, joint_2d = np.zeros(51), np.full((21, 3), -1.0), np.full((21, 2), -1.0)
    if true.labelled:
        pose_m = _pose_m(true.plan.side, true.theta, true.transl)
        joint_3d = true.joints_3d
        joint_2d = pixels(joint_3d, true.K)
    # The official segmentation is drawn from the labels: what has none is background.
    value = np.zeros(256, dtype=np.uint8)
    value[1 : 1 + len(true.posed)] = np.where(true.posed, true.plan.ycb_ids, 0)
    value[HAND] = 255 if true.labelled else 0
    return {
        "seg": value[picture.segmentation],
        "pose_y": pose_y.astype(np.float32),
        "pose_m": pose_m[None].astype(np.float32),
        "joint_3d": joint_3d[None].astype(np.float32),
        "joint_2d": joint_2d[None].astype(np.float32),
    }


def _pose_m(side: str, theta: np.ndarray, transl: np.ndarray) -> np.ndarray:
    """Root, 45 coefficients about the mean pose, translation: [51]."""
    model = shipped_or_fixed(side, as_shipped=True)
    coefficients = axis_angle_to_pca(model, theta[None, 3:])[0]
    return np.concatenate([theta[:3], coefficients, transl])


def pose_arrays(seed: int, num: int, plan: GraspPlan) -> dict[str, np.ndarray]:
    """Return the arrays of a ``pose.npz``: world frame, quaternions (x, y, z, w)."""
    pose_m = np.zeros((plan.num_frames, 1, 51), dtype=np.float32)
    pose_y = np.zeros((plan.num_frames, len(plan.ycb_ids), 7), dtype=np.float32)
    pose_y[:, :, 3] = 1.0
    for frame in range(plan.num_frames):
        true = truth_of(seed, num, plan, MASTER, frame)
        if true.labelled:
            pose_m[frame, 0] = _pose_m(plan.side, true.theta, true.transl)
        for slot in np.flatnonzero(true.posed):
            pose = true.T_cam_from_obj[slot]
            pose_y[frame, slot, :4] = Rotation.from_matrix(pose[:3, :3]).as_quat()
            pose_y[frame, slot, 4:] = pose[:3, 3] + pose_npz_shift(plan)
    return {"pose_y": pose_y, "pose_m": pose_m}


def _write_sequence(out: Path, seed: int, num: int, plan: GraspPlan) -> None:
    """Write ``meta.yml`` and ``pose.npz``."""
    folder = out / plan.folder
    meta: dict[str, Any] = {
        "serials": list(SERIALS),
        "num_frames": plan.num_frames,
        "extrinsics": plan.extrinsics,
        "ycb_ids": list(plan.ycb_ids),
        "ycb_grasp_ind": plan.grasp_ind,
        "mano_sides": [plan.side],
        "mano_calib": [plan.mano_calib],
    }
    _write_yaml(folder / "meta.yml", meta)
    np.savez(folder / "pose.npz", allow_pickle=False, **pose_arrays(seed, num, plan))


# --- calibration ----------------------------------------------------------------------------------


def _write_calibration(folder: Path, seed: int, sequences: tuple[GraspPlan, ...]) -> None:
    """Write intrinsics, extrinsics and the shapes of the subjects' hands."""
    for serial in SERIALS:
        K = intrinsics(seed, serial)
        color = {"fx": K[0, 0], "fy": K[1, 1], "ppx": K[0, 2], "ppy": K[1, 2]}
        color = {key: float(value) for key, value in color.items()}
        depth = {key: float(0.63 * value) for key, value in color.items()}
        path = folder / "intrinsics" / f"{serial}_{SIZE_HW[1]}x{SIZE_HW[0]}.yml"
        _write_yaml(path, {"color": color, "depth": depth})
    for subject, name in {(plan.subject, plan.extrinsics) for plan in sequences}:
        entries = {serial: _twelve(T_world_from_cam(seed, subject, serial)) for serial in SERIALS}
        # The tag lies on the table: its frame is that of the scenes.
        entries["apriltag"] = _twelve(table_cameras(seed, subject)[MASTER])
        path = folder / f"extrinsics_{name}" / "extrinsics.yml"
        _write_yaml(path, {"extrinsics": entries, "master": MASTER})
    for subject, name in {(plan.subject, plan.mano_calib) for plan in sequences}:
        betas = shape_of(seed, subject).tolist()
        _write_yaml(folder / f"mano_{name}" / "mano.yml", {"betas": betas})


def _twelve(T: np.ndarray) -> tuple[float, ...]:
    """The upper three rows as the files have them; as a tuple, which YAML writes with a tag."""
    return tuple(T[:3].ravel().tolist())


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write a file as PyYAML's plain dumper does, python/tuple tags included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.dump(content, sort_keys=False), encoding="ascii")
