"""Synthetic HO-3D: the official files of v2 or v3, filled with rendered synthetic scenes.

Layout as in ``HO3D_v2`` and ``HO3D_v3``: ``<part>/<sequence>/{rgb,depth,meta}/%04d``, in train also
``seg``; ``train.txt``, ``evaluation.txt``, in v3 ``calibration/``; the truth of evaluation in
``evaluation_xyz.json`` and ``evaluation_verts.json``; in ``models/`` the objects that occur. OpenGL
axes, MANO's joint order, absolute angles. Not written: contact fields, ``manual_annotations/``.

Gaps as in the real set: unlisted images, without a meta file or with one of only None; frames
without an object pose; evaluation frames with only a wrist and a box. A few listed frames have a
meta file of only None, which readers must handle.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from model.hand import STANDARD_FROM_MANO21
from preprocess.camera import pixels
from preprocess.sample.ho3d.scene import (
    PARTS,
    SIZE_HW,
    TAKE,
    ImageTruth,
    Slot,
    calibration_poses,
    cameras_of,
    draw_camera,
    draw_frame,
    draw_parameters,
    draw_take,
    recording_number,
    slot_of,
    unlisted,
)
from preprocess.sample.objects.ycb import OBJECTS, stand_in_object, write_models
from preprocess.sample.picture_file import save_picture
from preprocess.sample.processes import in_processes
from preprocess.sample.python2_pickle import python2_pickle
from preprocess.sample.render.hand_object import RenderedFrame, render_frame

VERSIONS: Final = {"v2": ".png", "v3": ".jpg"}
_DEPTH_STEP_M: Final = 0.00012498664727900177
_SMALLEST_EVAL: Final = 8
_SEG_FACTOR: Final = 4
_SEG_RGB: Final = {"v2": ((255, 0, 0), (0, 0, 255)), "v3": ((0, 0, 255), (0, 255, 0))}
"""Hand and object."""
_OPENGL_FROM_OPENCV: Final = np.diag([1.0, -1.0, -1.0, 1.0])
_JPEG: Final = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
)
_FLAT_JPEG: Final = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """List entries of a frame; ``xyz`` and ``verts`` are JSON, empty in train."""

    slot: Slot
    xyz: str
    verts: str


def write(
    out: Path,
    num: int,
    seed: int,
    num_eval: int | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
    *,
    version: str = "v3",
) -> dict[str, int]:
    """Write a sample; returns listed images per part.

    Args:
        out: Target folder; the root of the dataset.
        num: Listed training images.
        seed: Any non-negative integer.
        num_eval: Evaluation images; None: ``num // 8``, at least 8.
        workers: Processes; 0: one per core.
        progress: Called with (done, total) frames.
        version: ``v2`` or ``v3``.

    Raises:
        ValueError: If there is no such version.
    """
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
    counts = {"train": num, "evaluation": num_eval or max(_SMALLEST_EVAL, num // 8)}
    tasks = [(part, idx) for part in PARTS for idx in range(counts[part])]
    job = partial(_write_task, out, seed, version)
    rows = list(in_processes(job, tasks, workers, progress, chunk=TAKE))
    for part in PARTS:
        own = [row for row in rows if row.slot.part == part]
        own.sort(key=lambda row: (row.slot.sequence, row.slot.stem))
        lines = "".join(f"{row.slot.sequence}/{row.slot.stem}\n" for row in own)
        (out / f"{part}.txt").write_text(lines, encoding="ascii")
        if part == "evaluation":
            for name in ("xyz", "verts"):
                text = ", ".join(getattr(row, name) for row in own)
                (out / f"{part}_{name}.json").write_text(f"[{text}]", encoding="ascii")
    if version == "v3":
        for recording in {row.slot.recording for row in rows}:
            if cameras_of(recording):
                _write_calibration(out / "calibration" / recording / "calibration", seed, recording)
    write_models(out, sorted({row.slot.object_name for row in rows}))
    return counts


def _write_task(out: Path, seed: int, version: str, task: tuple[str, int]) -> Listed:
    """One listed frame; at module level so that a spawned process can import it."""
    slot = slot_of(*task)
    frame = write_one(out, seed, version, slot)
    if slot.frame == 0 and slot.part == "train":
        write_one(out, seed, version, unlisted(slot))
    if slot.part == "train":
        return Listed(slot=slot, xyz="", verts="")
    return Listed(
        slot=slot,
        xyz=json.dumps(_official_joints(frame).tolist()),
        verts=json.dumps(np.round(_opengl(frame.vertices), 7).tolist()),
    )


def write_one(out: Path, seed: int, version: str, slot: Slot) -> ImageTruth:
    """Render the frame of a slot and write its files."""
    frame = draw_frame(seed, slot)
    folder = out / slot.part / slot.sequence
    for kind in ("rgb", "depth", "meta", *(["seg"] if slot.part == "train" else [])):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    picture = render_frame(
        draw_take(seed, slot),
        slot.frame,
        frame.K,
        frame.T_cam_from_world,
        SIZE_HW,
        look_key=(seed, 5, recording_number(slot.recording), slot.take),
    )
    _write_pictures(folder, slot, version, picture)
    if slot.has_meta:
        path = folder / "meta" / f"{slot.stem}.pkl"
        path.write_bytes(python2_pickle(meta_of(seed, slot, frame)))
    return frame


# --- labels ---------------------------------------------------------------------------------------


def meta_of(seed: int, slot: Slot, frame: ImageTruth) -> dict[str, Any]:
    """Return the content of the meta file."""
    T_gl_from_obj = _OPENGL_FROM_OPENCV @ frame.T_cam_from_obj
    vertices = stand_in_object(slot.object_name).vertices
    low, high = vertices.min(0), vertices.max(0)
    corners = np.array([*itertools.product(*zip(low, high, strict=True))])
    rotation = Rotation.from_matrix(T_gl_from_obj[:3, :3]).as_rotvec()
    meta: dict[str, Any] = {
        "camMat": frame.K,
        "objName": slot.object_name,
        "objLabel": OBJECTS.index(slot.object_name) + 1,
        "objRot": None if slot.lacks_object else rotation[:, None],
        "objTrans": None if slot.lacks_object else T_gl_from_obj[:3, 3],
        "objCorners3DRest": corners,
        "objCorners3D": corners @ T_gl_from_obj[:3, :3].T + T_gl_from_obj[:3, 3],
    }
    joints = _official_joints(frame)
    if slot.part == "train":
        T_gl_from_world = _OPENGL_FROM_OPENCV @ frame.T_cam_from_world
        theta, transl = draw_parameters(seed, slot, T_gl_from_world)
        meta |= {"handPose": theta, "handTrans": transl, "handBeta": frame.beta}
        meta["handJoints3D"] = joints
    else:
        seen = pixels(frame.vertices, frame.K)
        box = np.concatenate([np.floor(seen.min(0)), np.ceil(seen.max(0))])
        meta |= {"handJoints3D": joints[0], "handBoundingBox": [int(value) for value in box]}
    is_none = slot.is_unannotated or unlisted(slot) == slot
    return dict.fromkeys(meta) if is_none else meta


def _official_joints(frame: ImageTruth) -> np.ndarray:
    """The 21 joints [21, 3] in OpenGL axes and MANO's order."""
    joints = np.empty((21, 3))
    joints[list(STANDARD_FROM_MANO21)] = frame.joints_3d
    return _opengl(joints)


def _opengl(points: np.ndarray) -> np.ndarray:
    return points @ _OPENGL_FROM_OPENCV[:3, :3]


def _write_calibration(folder: Path, seed: int, recording: str) -> None:
    """Write poses and intrinsics by position in the list of cameras."""
    folder.mkdir(parents=True, exist_ok=True)
    order, poses = calibration_poses(seed, recording)
    (folder / "cam_orders.txt").write_text(" ".join(map(str, order)) + "\n", encoding="ascii")
    (folder / "cam_0_depth_scale.txt").write_text(f"{_DEPTH_STEP_M!r}\n", encoding="ascii")
    for i, (camera, T) in enumerate(zip(order, poses, strict=True)):
        np.savetxt(folder / f"trans_{i}.txt", T, fmt="%.18e")
        K, _ = draw_camera(seed, recording, camera)
        values = {"ppx": K[0, 2], "ppy": K[1, 2], "fx": K[0, 0], "fy": K[1, 1]}
        line = ",".join(f"{name}:{float(value)!r}" for name, value in values.items())
        (folder / f"cam_{i}_intrinsics.txt").write_text(line + "\n", encoding="ascii")


# --- pictures -------------------------------------------------------------------------------------


def _write_pictures(folder: Path, slot: Slot, version: str, picture: RenderedFrame) -> None:
    suffix = VERSIONS[version]
    _write_image(folder / "rgb" / f"{slot.stem}{suffix}", picture.rgb)
    steps = np.clip(np.round(picture.depth_m / _DEPTH_STEP_M), 0, 65_535).astype(np.int64)
    low_high = np.stack([steps % 256, steps // 256, np.zeros_like(steps)], axis=-1)
    _write_image(folder / "depth" / f"{slot.stem}.png", low_high.astype(np.uint8))
    if slot.part == "train":
        middle = _SEG_FACTOR // 2
        small = picture.segmentation[middle::_SEG_FACTOR, middle::_SEG_FACTOR]
        colours = np.zeros((*small.shape, 3), np.uint8)
        hand, thing = _SEG_RGB[version]
        colours[small == 255], colours[small == 1] = hand, thing
        seg_suffix = ".jpg" if version == "v2" else ".png"
        _write_image(folder / "seg" / f"{slot.stem}{seg_suffix}", colours, _FLAT_JPEG)


def _write_image(path: Path, rgb: np.ndarray, jpeg: tuple[int, ...] = _JPEG) -> None:
    """Write RGB as PNG or baseline JPEG, by file name."""
    save_picture(path, rgb[:, :, ::-1], jpeg if path.suffix == ".jpg" else ())
