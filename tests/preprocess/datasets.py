"""Tiny FreiHAND and InterHand2.6M datasets with ground truth, written without Handloom's code.

Hands are decoded with ``smplx.lbs`` in float64; joints, cameras and FreiHAND's root convention are
written out as in the official tools' description.
"""

import json
import pickle
import struct
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from preprocess.records import DatasetSource, Labels

TIPS_FREIHAND = (744, 320, 443, 555, 672)
# FreiHAND's order from MANO's 16 joints and the 5 tips, as listed in its utils/mano_utils.py.
FREIHAND_FROM_MANO21 = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
MIRROR = np.array([-1.0, 1.0, 1.0])


def write_mano(folder: Path, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Write random MANO-shaped files (left basis as published, unfixed); return the true arrays."""
    rng = np.random.default_rng(seed)
    weights = rng.random((778, 16)) ** 8
    regressor = rng.random((16, 778)) ** 40
    sides = {}
    for side in ("right", "left"):
        sides[side] = {
            "v_template": rng.normal(0, 0.05, (778, 3)),
            "shapedirs": rng.normal(0, 0.003, (778, 3, 10)),
            "posedirs": rng.normal(0, 0.001, (778, 3, 135)),
            "J_regressor": regressor / regressor.sum(1, keepdims=True),
            "weights": weights / weights.sum(1, keepdims=True),
            "hands_mean": rng.normal(0, 0.2, 45),
            "hands_components": np.linalg.qr(rng.normal(size=(45, 45)))[0],
            "f": rng.integers(0, 778, (1538, 3)).astype(np.uint32),
            "kintree_table": np.array([[2**32 - 1, *PARENTS[1:]], range(16)], np.uint32),
        }
    sides["left"]["shapedirs"] = sides["right"]["shapedirs"] * MIRROR[:, None]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "MANO_RIGHT.npz", allow_pickle=False, **sides["right"])
    published = dict(sides["left"], shapedirs=sides["right"]["shapedirs"])
    np.savez(folder / "MANO_LEFT.npz", allow_pickle=False, **published)
    return sides


def decode(arrays: dict[str, np.ndarray], theta: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Return posed vertices [778, 3] at zero translation, by smplx."""
    from smplx.lbs import lbs

    def tensor(value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64))

    vertices, _ = lbs(
        tensor(beta[None]),
        tensor(theta[None]),
        tensor(arrays["v_template"]),
        tensor(arrays["shapedirs"]),
        tensor(arrays["posedirs"].reshape(-1, 135).T),
        tensor(arrays["J_regressor"]),
        torch.tensor(PARENTS),
        tensor(arrays["weights"]),
    )
    return np.asarray(vertices[0].numpy())


def jpeg(seed: int, height: int = 48, width: int = 64) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return bytes(cv2.imencode(".jpg", smooth)[1].tobytes())


def png_of_claimed_size(width: int, height: int) -> bytes:
    """Return a PNG of few bytes whose header, with a valid checksum, claims a size."""
    data = bytearray(cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg_of_claimed_size(width: int, height: int) -> bytes:
    """Return a JPEG of few bytes whose header claims a size."""
    data = bytearray(jpeg(0))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def labels_at(source: DatasetSource, official_idx: int) -> Labels:
    """Return the labels of one image, via the label job that a worker would run."""
    stack = pickle.loads(pickle.dumps(source.label_job([official_idx])))()  # noqa: S301  # our own
    return Labels(**{f.name: getattr(stack, f.name)[0] for f in fields(Labels)})


# --- FreiHAND -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class FreihandTruth:
    root: Path
    num_unique: int
    num_eval: int
    K: np.ndarray
    """Training then evaluation poses."""
    xyz: np.ndarray
    verts: np.ndarray
    theta: np.ndarray
    """Absolute."""
    beta: np.ndarray
    images: list[bytes]
    """Values by official index."""


def write_freihand(
    parent: Path,
    *,
    num_unique: int = 3,
    num_eval: int = 2,
    mano: dict[str, np.ndarray] | None = None,
    truth_folder: str = "FreiHAND_pub_v2_eval",
) -> FreihandTruth:
    """Write ``FreiHAND_pub_v2`` below ``parent``; evaluation ground truth in ``truth_folder``."""
    rng = np.random.default_rng(7)
    root = parent / "FreiHAND_pub_v2"
    rows = [_freihand_pose(rng, mano) for _ in range(num_unique + num_eval)]
    images = [jpeg(seed) for seed in range(4 * num_unique + num_eval)]
    for name, files in (
        ("training", images[: 4 * num_unique]),
        ("evaluation", images[4 * num_unique :]),
    ):
        (root / name / "rgb").mkdir(parents=True)
        for i, data in enumerate(files):
            (root / name / "rgb" / f"{i:08d}.jpg").write_bytes(data)
    (parent / truth_folder).mkdir(exist_ok=True)
    for name, poses in (("training", rows[:num_unique]), ("evaluation", rows[num_unique:])):
        for key in ("K", "xyz", "mano", "scale", "verts"):
            official = name == "training" or key in ("K", "scale")
            folder = root if official else parent / truth_folder
            values = [np.asarray(pose[key]).tolist() for pose in poses]
            (folder / f"{name}_{key}.json").write_text(json.dumps(values))
    return FreihandTruth(
        root=root,
        num_unique=num_unique,
        num_eval=num_eval,
        images=images,
        **{key: np.array([r[key] for r in rows]) for key in ("K", "xyz", "verts", "theta", "beta")},
    )


def _freihand_pose(rng: np.random.Generator, mano: dict[str, np.ndarray] | None) -> dict[str, Any]:
    arrays = mano or {"J_regressor": np.ones((16, 778)) / 778, "hands_mean": np.zeros(45)}
    theta, beta = rng.normal(0, 0.3, 48), rng.normal(0, 1.0, 10)
    posed = rng.normal(0, 0.05, (778, 3)) if mano is None else decode(mano, theta, beta)
    middle = arrays["J_regressor"][4] @ posed  # FreiHAND's root: middle MCP on the posed mesh
    place = np.array([rng.normal(0, 0.02), rng.normal(0, 0.02), rng.uniform(0.5, 0.8)])
    verts = posed + place - middle
    mano21 = [*(arrays["J_regressor"] @ verts), *verts[list(TIPS_FREIHAND)]]
    xyz = np.array([mano21[j] for j in FREIHAND_FROM_MANO21])
    fx, fy, cx, cy = 130.0 + rng.random(), 131.0 + rng.random(), 31.5, 23.5
    scale = (fx + fy) / 2 / place[2]
    uv = place[:2] * scale + [cx, cy]
    offsets = np.concatenate([theta[:3], theta[3:] - arrays["hands_mean"]])
    return {
        "K": np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
        "xyz": xyz,
        "verts": verts,
        "mano": [np.concatenate([offsets, beta, uv, [scale]])],
        "scale": float(np.linalg.norm(xyz[9] - xyz[10])),
        "theta": theta,
        "beta": beta,
    }


# --- InterHand2.6M --------------------------------------------------------------------------------


def write_interhand(
    root: Path,
    *,
    splits: tuple[str, ...] = ("train", "val", "test"),
    mano: dict[str, dict[str, np.ndarray]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write InterHand2.6M below ``root``: two captures, two cameras, three frames in each split.

    Returns the parsed annotations of each split by file name (data, camera, joint_3d, mano).
    """
    rng = np.random.default_rng(3)
    written = {}
    for split in splits:
        camera: dict[str, Any] = {}
        joints: dict[str, Any] = {}
        hands: dict[str, Any] = {}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for capture in (0, 3):
            camera[str(capture)] = {"campos": {}, "camrot": {}, "focal": {}, "princpt": {}}
            for name in ("400002", "400012"):
                entry = camera[str(capture)]
                entry["campos"][name] = (rng.normal(0, 50, 3) - [0, 0, 900]).tolist()
                turn = Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix()
                entry["camrot"][name] = turn.tolist()
                entry["focal"][name] = [80.0 + rng.random(), 81.0 + rng.random()]
                entry["princpt"][name] = [31.0, 23.0]
            joints[str(capture)], hands[str(capture)] = {}, {}
            for number, kind in enumerate(("right", "left", "interacting")):
                frame = 100 - 10 * number  # the files are not sorted by frame
                valid = np.ones((42, 1), int)
                valid[21:] *= kind != "right"
                valid[:21] *= kind != "left"
                world = np.where(valid, rng.normal(0, 60, (42, 3)), 1.0)
                joints[str(capture)][str(frame)] = {
                    "world_coord": world.tolist(),
                    "joint_valid": valid.tolist(),
                    "hand_type": kind,
                    "hand_type_valid": True,
                }
                hands[str(capture)][str(frame)] = {
                    side: None
                    if kind not in (side, "interacting")
                    else {
                        "pose": rng.normal(0, 0.4, 48).tolist(),
                        "shape": rng.normal(0, 1, 10).tolist(),
                        "trans": rng.normal(0, 0.05, 3).tolist(),
                    }
                    for side in ("right", "left")
                }
                for name in ("400012", "400002"):
                    file = f"Capture{capture}/ROM0{number}/cam{name}/image{frame}.jpg"
                    path = root / "images" / split / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(jpeg(len(images)))
                    images.append(
                        {
                            "id": 1000 + len(images),
                            "file_name": file,
                            "width": 64,
                            "height": 48,
                            "capture": capture,
                            "subject": capture + 1,
                            "seq_name": f"ROM0{number}",
                            "camera": name,
                            "frame_idx": frame,
                        }
                    )
                    annotations.append(
                        {
                            "id": len(annotations),
                            "image_id": images[-1]["id"],
                            "bbox": [10.0, 8.0, 30.0, 20.0],
                            "joint_valid": valid.tolist(),
                            "hand_type": kind,
                            "hand_type_valid": 1,
                        }
                    )
        annotations.reverse()  # joined by image_id, not by position
        tables = {
            "data": {"images": images, "annotations": annotations},
            "camera": camera,
            "joint_3d": joints,
        }
        if mano is not None:
            tables["MANO_NeuralAnnot"] = hands
        for name, table in tables.items():
            interhand_file(root, split, name).parent.mkdir(parents=True, exist_ok=True)
            interhand_file(root, split, name).write_text(json.dumps(table))
        written[split] = tables
    return written


def interhand_file(root: Path, split: str, name: str) -> Path:
    return root / "annotations" / split / f"InterHand2.6M_{split}_{name}.json"
