"""Tiny HO-3D trees in the official layout with ground truth, written without Handloom's code.

Pickles are written step by step as Python 2 does; hands are decoded with ``smplx.lbs``; the OpenGL
camera, MANO's joint order and the depth encoding are written out as in the official description.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from smplx.lbs import lbs

from tests.pipeline.pickles.pickle_words import python2_dumps
from tests.preprocess.datasets import PARENTS, jpeg

FLIP = np.array([1.0, -1.0, -1.0])
TIPS = (744, 333, 444, 555, 672)  # setup_mano.py
# Wrist, thumb to little from MANO's index, middle, little, ring, thumb and the five tips.
SIMPLE_FROM_MANO = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
SIZE_HW = (48, 64)
SCALE_M = 0.00012498664727900177
TRAIN = {
    "ABF10": ("021_bleach_cleanser", ("0000", "0001", "0003")),
    "ABF13": ("021_bleach_cleanser", ("0000", "0001", "0003")),
    "MC2": ("003_cracker_box", ("0010",)),
    "SB10": ("021_bleach_cleanser", ("0000", "0007")),
}
EVALUATION = {
    "SB11": ("021_bleach_cleanser", ("0007", "0000")),
    "AP12": ("019_pitcher_base", ("0005",)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameTruth:
    """OpenCV camera, metres; joints in standard order."""

    folder: str
    stem: str
    meta: dict[str, Any]
    """As in the file."""
    image: bytes
    K: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray
    object_name: str
    object_pose: np.ndarray
    """[3, 4]."""
    T_world_from_cam: np.ndarray | None
    depth_mm: np.ndarray
    segmentation: np.ndarray | None
    """[h, w]: 0, 1 object, 255 hand."""

    @property
    def meta_path(self) -> str:
        return f"{self.folder}/meta/{self.stem}.pkl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ho3dTruth:
    root: Path
    frames: list[FrameTruth]
    """In the order of train.txt and evaluation.txt."""
    num_train: int

    def at(self, line: str) -> int:
        return [f"{f.folder.split('/')[1]}/{f.stem}" for f in self.frames].index(line)


def write_ho3d(
    root: Path,
    mano: dict[str, np.ndarray],
    *,
    version: str = "v3",
    truth: bool = False,
    calibration: bool = True,
) -> Ho3dTruth:
    """Write a tree; ``truth`` adds evaluation_xyz.json and evaluation_verts.json."""
    rng = np.random.default_rng(11)
    cameras = {
        recording: _write_calibration(root, recording, order, rng) if calibration else {}
        for recording, order in (("ABF1", (3, 0, 1)), ("SB1", (1, 0)), ("AP1", (2,)))
    }
    frames: list[FrameTruth] = []
    for part, sequences in (("train", TRAIN), ("evaluation", EVALUATION)):
        lines = []
        for sequence, (name, stems) in sequences.items():
            for stem in stems:
                pose = cameras.get(sequence[:-1], {}).get(int(sequence[-1]))
                frames.append(
                    _write_frame(root, version, part, sequence, stem, name, pose, mano, rng)
                )
                lines.append(f"{sequence}/{stem}\n")
        (root / f"{part}.txt").write_text("".join(lines))
    if truth:
        shown = [f for f in frames if f.folder.startswith("evaluation")]
        mano21 = np.argsort(SIMPLE_FROM_MANO)
        for name, values in (
            ("xyz", [(f.joints * FLIP)[mano21].tolist() for f in shown]),
            ("verts", [(f.vertices * FLIP).tolist() for f in shown]),
        ):
            (root / f"evaluation_{name}.json").write_text(json.dumps(values))
    return Ho3dTruth(root=root, frames=frames, num_train=sum(len(s) for _, s in TRAIN.values()))


def rewrite(truth: Ho3dTruth, line: str, **changes: Any) -> FrameTruth:
    """Rewrite the meta file of a listed frame with other values; return the old ground truth."""
    frame = truth.frames[truth.at(line)]
    (truth.root / frame.meta_path).write_bytes(python2_dumps(frame.meta | changes))
    return frame


def _write_frame(
    root: Path,
    version: str,
    part: str,
    sequence: str,
    stem: str,
    name: str,
    pose: np.ndarray | None,
    mano: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> FrameTruth:
    folder = root / part / sequence
    for kind in ("rgb", "depth", "meta", *(["seg"] if part == "train" else [])):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    K = np.array([[61.0 + rng.random(), 0, 31.2], [0, 62.0 + rng.random(), 23.7], [0, 0, 1]])
    theta, beta = rng.normal(0, 0.4, 48), rng.normal(0, 1, 10)
    trans = np.array([*rng.normal(0, 0.03, 2), -rng.uniform(0.5, 0.8)])
    vertices, joints = _decode(mano, theta, beta, trans)
    rot = rng.normal(0, 1, 3)
    obj = np.array([*rng.normal(0, 0.03, 2), -rng.uniform(0.5, 0.8)])
    meta: dict[str, Any] = {
        "camMat": K,
        "objName": name,
        "objLabel": 7,
        "objRot": rot[:, None],
        "objTrans": obj,
        "objCorners3D": rng.normal(size=(8, 3)),
        "objCorners3DRest": rng.normal(size=(8, 3)),
    }
    if part == "train":
        meta |= {"handPose": theta, "handTrans": trans, "handBeta": beta, "handJoints3D": joints}
        meta["handVertContact"] = rng.random(778) > 0.5
    else:
        meta |= {"handJoints3D": joints[0], "handBoundingBox": [10, 12, 40, 44]}
    (folder / "meta" / f"{stem}.pkl").write_bytes(python2_dumps(meta))
    image = jpeg(int(rng.integers(1 << 30)))
    if version == "v2":
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        image = cv2.imencode(".png", pixels)[1].tobytes()
    (folder / "rgb" / f"{stem}{'.png' if version == 'v2' else '.jpg'}").write_bytes(image)
    return FrameTruth(
        folder=f"{part}/{sequence}",
        stem=stem,
        meta=meta,
        image=image,
        K=K,
        vertices=vertices * FLIP,
        joints=joints[list(SIMPLE_FROM_MANO)] * FLIP,
        object_name=name,
        object_pose=np.column_stack(
            [np.diag(FLIP) @ Rotation.from_rotvec(rot).as_matrix(), obj * FLIP]
        ),
        T_world_from_cam=pose,
        depth_mm=_write_depth(folder / "depth" / f"{stem}.png", rng),
        segmentation=_write_segmentation(folder / "seg", stem, version, rng)
        if part == "train"
        else None,
    )


def _decode(
    mano: dict[str, np.ndarray], theta: np.ndarray, beta: np.ndarray, trans: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and handJoints3D: the posed skeleton and the fingertips, MANO's order."""

    def tensor(value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64))

    vertices, joints = lbs(
        tensor(beta[None]),
        tensor(theta[None]),
        tensor(mano["v_template"]),
        tensor(mano["shapedirs"]),
        tensor(mano["posedirs"].reshape(-1, 135).T),
        tensor(mano["J_regressor"]),
        torch.tensor(PARENTS),
        tensor(mano["weights"]),
    )
    found = vertices[0].numpy() + trans
    return found, np.concatenate([joints[0].numpy() + trans, found[list(TIPS)]])


def _write_depth(path: Path, rng: np.random.Generator) -> np.ndarray:
    steps = rng.integers(0, 1 << 16, SIZE_HW)
    steps[:8] = 0
    bgr = np.zeros((*SIZE_HW, 3), np.uint8)
    bgr[..., 1], bgr[..., 2] = np.divmod(steps, 256)
    cv2.imwrite(str(path), bgr)
    return np.asarray(np.rint(steps * SCALE_M * 1000).astype(np.uint16))


def _write_segmentation(
    folder: Path, stem: str, version: str, rng: np.random.Generator
) -> np.ndarray:
    """A quarter of the size: v3 hand blue and object green; v2 hand red and object blue, JPEG."""
    height, width = SIZE_HW[0] // 4, SIZE_HW[1] // 4
    classes = np.zeros((height, width), np.uint8)
    top, left = rng.integers(0, 4, 2)
    classes[top : top + 6, left : left + 8] = 255
    classes[top + 3 : top + 8, left + 8 : left + 12] = 1
    hand, thing = ((255, 0, 0), (0, 255, 0)) if version == "v3" else ((0, 0, 255), (255, 0, 0))
    bgr = np.zeros((height, width, 3), np.uint8)
    bgr[classes == 255], bgr[classes == 1] = hand, thing
    if version == "v3":
        cv2.imwrite(str(folder / f"{stem}.png"), bgr)
    else:
        full = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        cv2.imwrite(str(folder / f"{stem}.jpg"), bgr, full)
    return classes[np.arange(SIZE_HW[0])[:, None] // 4, np.arange(SIZE_HW[1]) // 4]


def _write_calibration(
    root: Path, recording: str, order: tuple[int, ...], rng: np.random.Generator
) -> dict[int, np.ndarray]:
    """Write poses by place in the list; return them by camera."""
    folder = root / "calibration" / recording / "calibration"
    folder.mkdir(parents=True)
    np.savetxt(folder / "cam_orders.txt", np.array(order)[None], fmt="%.6e")
    poses = {}
    for i, camera in enumerate(order):
        T = np.eye(4)
        T[:3, :3] = Rotation.from_rotvec(rng.normal(size=3)).as_matrix()
        T[:3, 3] = rng.normal(size=3)
        np.savetxt(folder / f"trans_{i}.txt", T, fmt="%.12f")
        poses[camera] = T
    return poses
