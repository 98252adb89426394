"""Synthetic InterHand2.6M: the official files, filled with rendered synthetic hands.

Layout as in the 5 fps release: ``Capture<k>/<sequence>/cam<id>/image<frame>.jpg`` below
``images/<split>``, and four files per split below ``annotations/<split>``. As in the real set,
cameras ``40...`` are in colour and ``41...`` grey, joints come from InterHand2.6M's own regressor,
world coordinates are millimetres, MANO translations metres for the fixed left hand, and the MANO
pose has the mean subtracted. One frame in eight misses joints; some have no MANO fit.

The scenes are in ``interhand26m.scene``. A sample is a pure function of (seed, split, index).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from model.hand import NUM_JOINTS
from preprocess.sample.hand.mesh import interhand_regressor, stand_in_model
from preprocess.sample.interhand26m.scene import (
    CAMERAS,
    Camera,
    Slot,
    camera_rig,
    pose_hands,
    slot_of,
    stream,
    subject,
)
from preprocess.sample.picture_file import save_picture
from preprocess.sample.render.background import draw_studio
from preprocess.sample.render.hand import (
    Picture,
    Sight,
    compose,
    draw_lights,
    draw_wrist_bend,
    render_hands,
)

INVALID_POINT_MM: Final = 1.0
"""The world coordinates of joints that are not annotated."""
BBOX_PAD: Final = 1.2
"""The real boxes are the joints' box times 1.2 about its centre."""
_FIRST_ID: Final = {"train": 100_000, "val": 200_000, "test": 300_000}


def joint_labels(seed: int, slot: Slot) -> tuple[np.ndarray, np.ndarray]:
    """Return world joints [42, 3] in mm and their validity [42]; right hand first.

    One frame in eight misses some joints of a hand.
    """
    world = np.full((2 * NUM_JOINTS, 3), INVALID_POINT_MM)
    valid = np.zeros(2 * NUM_JOINTS, dtype=bool)
    regressor = interhand_regressor().astype(np.float64)
    rng = stream(seed, slot.split, 4, slot.sequence, slot.frame)
    for hand in pose_hands(seed, slot):
        start = NUM_JOINTS if hand.side == "left" else 0
        seen = np.ones(NUM_JOINTS, dtype=bool)
        if rng.random() < 0.125:
            # The wrist stays valid: without it the official toolkit drops the whole hand.
            seen[rng.choice(NUM_JOINTS - 1, rng.integers(1, 6), replace=False)] = False
        rows = slice(start, start + NUM_JOINTS)
        world[rows] = np.where(seen[:, None], regressor @ hand.vertices * 1000.0, INVALID_POINT_MM)
        valid[rows] = seen
    return world, valid


def mano_label(seed: int, slot: Slot) -> dict[str, Any]:
    """Return the frame's MANO entry: per side None or pose, shape, translation."""
    entry: dict[str, Any] = {"right": None, "left": None}
    rng = stream(seed, slot.split, 5, slot.sequence, slot.frame)
    for hand in pose_hands(seed, slot):
        if rng.random() < 0.08:
            continue
        pose = hand.theta.copy()
        pose[3:] -= stand_in_model(hand.side).hands_mean
        entry[hand.side] = {
            "pose": pose.tolist(),
            "shape": hand.beta.tolist(),
            "trans": hand.transl.tolist(),
        }
    return entry


def render(seed: int, slot: Slot) -> Picture:
    """Render the hands of an image without its background."""
    camera = camera_rig(seed, slot.split, slot.capture)[slot.camera]
    _, skin = subject(seed, slot.split, slot.capture)
    rng = stream(seed, slot.split, 6, slot.sequence)
    turn = camera.R_cam_from_world
    sights = []
    for hand in pose_hands(seed, slot):
        root = Rotation.from_rotvec(hand.theta[:3]).as_matrix()
        sights.append(
            Sight(
                vertices=(hand.vertices - camera.position_mm / 1000.0) @ turn.T,
                is_right=hand.side == "right",
                root_rotmat=turn @ root,
                skin=skin,
                wrist_bend=draw_wrist_bend(rng),
            )
        )
    return render_hands(sights, camera.intrinsics, camera.size_hw, draw_lights(rng))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of one image in the annotation files."""

    slot: Slot
    image: dict[str, Any]
    annotation: dict[str, Any]
    joint_3d: dict[str, Any]
    mano: dict[str, Any]


def write_one(root: Path, seed: int, split: str, idx: int) -> Rows:
    """Render image ``idx`` of ``split``, write it, return its annotation rows."""
    slot = slot_of(split, idx)
    camera = camera_rig(seed, split, slot.capture)[slot.camera]
    # A fixed camera sees the same room in all frames of a sequence.
    studio_rng = stream(seed, split, 7, slot.sequence, CAMERAS.index(slot.camera))
    background = draw_studio(studio_rng, camera.size_hw)
    picture = compose(render(seed, slot), background, stream(seed, split, 9, idx))
    if slot.camera.startswith("41"):
        picture = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    path = root / "images" / split / slot.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_jpeg(path, picture)
    return _rows(seed, slot, _FIRST_ID[split] + idx, camera)


def _rows(seed: int, slot: Slot, image_id: int, camera: Camera) -> Rows:
    """The image's annotation rows."""
    world, valid = joint_labels(seed, slot)
    cam = (world[valid] - camera.position_mm) @ camera.R_cam_from_world.T
    pixel = cam[:, :2] / cam[:, 2:] * camera.focal + camera.princpt
    low, high = pixel.min(0), pixel.max(0)
    size = (high - low) * BBOX_PAD
    corner = (low + high) / 2 - size / 2
    known = bool(stream(seed, slot.split, 8, slot.sequence).random() >= 0.04)
    height, width = camera.size_hw
    return Rows(
        slot=slot,
        image={
            "id": image_id,
            "file_name": slot.file_name,
            "width": width,
            "height": height,
            "capture": slot.capture,
            "subject": slot.capture,
            "seq_name": slot.sequence_name,
            "camera": slot.camera,
            "frame_idx": slot.frame_idx,
        },
        annotation={
            "id": image_id,
            "image_id": image_id,
            "bbox": [*corner.tolist(), *size.tolist()],
            "joint_valid": [[int(v)] for v in valid],
            "hand_type": slot.hand_type,
            "hand_type_valid": int(known),
        },
        joint_3d={
            "world_coord": world.tolist(),
            "joint_valid": [[bool(v)] for v in valid],
            "hand_type": slot.hand_type,
            "hand_type_valid": known,
        },
        mano=mano_label(seed, slot),
    )


def write_labels(root: Path, seed: int, split: str, rows: list[Rows]) -> None:
    """Write the four annotation files of a split."""
    folder = root / "annotations" / split
    folder.mkdir(parents=True, exist_ok=True)
    data = {"images": [r.image for r in rows], "annotations": [r.annotation for r in rows]}
    joints: dict[str, dict[str, Any]] = {}
    mano: dict[str, dict[str, Any]] = {}
    cameras = {}
    for row in rows:
        capture, frame = str(row.slot.capture), str(row.slot.frame_idx)
        joints.setdefault(capture, {})[frame] = row.joint_3d
        mano.setdefault(capture, {})[frame] = row.mano
        rig = camera_rig(seed, split, row.slot.capture)
        cameras[capture] = {
            "campos": {name: camera.position_mm.tolist() for name, camera in rig.items()},
            "camrot": {name: camera.R_cam_from_world.tolist() for name, camera in rig.items()},
            "focal": {name: camera.focal.tolist() for name, camera in rig.items()},
            "princpt": {name: camera.princpt.tolist() for name, camera in rig.items()},
        }
    files = {"data": data, "camera": cameras, "joint_3d": joints, "MANO_NeuralAnnot": mano}
    for name, content in files.items():
        path = folder / f"InterHand2.6M_{split}_{name}.json"
        path.write_text(json.dumps(content), encoding="ascii")


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write a progressive 4:2:0 JPEG from RGB, as the real images are."""
    options = (
        *(cv2.IMWRITE_JPEG_QUALITY, 90),
        *(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    )
    save_picture(path, image[:, :, ::-1], options)
