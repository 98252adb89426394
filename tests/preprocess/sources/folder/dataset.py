"""A folder dataset with true labels, written without Handloom's reader."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

# Where each joint of a MANO or InterHand2.6M list is in the standard order.
STANDARD_OF_MANO = (0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20)
STANDARD_OF_INTERHAND = (4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17, 0)
FLIP = np.array([1.0, -1.0, -1.0])


@dataclass(kw_only=True, slots=True)
class Folder:
    """What was written."""

    root: Path
    header: dict[str, Any]
    records: list[dict[str, Any]]
    joints: np.ndarray
    """Right hands [n, 21, 3], camera frame of OpenCV, metres, standard order."""
    K: np.ndarray
    images: list[bytes] = field(default_factory=list)

    def write(self) -> None:
        lines = [self.header, *self.records]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.root / "annotations.jsonl").write_text(text)


def hand(rng: np.random.Generator, *, curl: float = 0.9) -> np.ndarray:
    """A right hand [21, 3] of straight phalanges bent to the palm by ``curl`` each, metres."""
    joints = np.zeros((21, 3))
    # Fingers along -y, the palm towards -z, the thumb at x: a right hand.
    for finger, x in enumerate((0.035, 0.025, 0.0, -0.02, -0.04)):
        base = np.array([x, -0.04 if finger == 0 else -0.09, 0.0])
        direction = np.array([0.5 if finger == 0 else 0.0, -1.0, 0.0])
        joints[1 + 4 * finger] = base
        for k in range(1, 4):
            turned = Rotation.from_rotvec([curl * k / 2, 0, 0]).apply(direction)
            joints[1 + 4 * finger + k] = joints[4 * finger + k] + 0.03 * turned
    turn = Rotation.random(random_state=rng)
    place = np.array([rng.normal(0, 0.03), rng.normal(0, 0.03), 0.6])
    return np.asarray(turn.apply(joints) + place)


def write_folder(
    root: Path,
    *,
    num: int = 6,
    units: str = "m",
    axes: str = "opencv",
    joint_order: str | list[int] = "standard",
    size_hw: tuple[int, int] = (48, 64),
    only_2d: bool = False,
) -> Folder:
    """Write images and annotations: one right hand each."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir()
    height, width = size_hw
    K = np.array([[width * 1.0, 0, width / 2 - 0.5], [0, width * 1.0, height / 2 - 0.5], [0, 0, 1]])
    joints = np.stack([hand(rng) for _ in range(num)])
    scale = {"m": 1.0, "cm": 100.0, "mm": 1000.0}[units]
    order = {
        "standard": range(21), "openpose": range(21), "mano": STANDARD_OF_MANO,
        "interhand": STANDARD_OF_INTERHAND,
    }[joint_order] if isinstance(joint_order, str) else np.argsort(joint_order)  # fmt: skip
    records, images = [], []
    for i in range(num):
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        jpeg = bytes(cv2.imencode(".jpg", cv2.GaussianBlur(noise, (0, 0), 3))[1].tobytes())
        (root / f"images/{i:03d}.jpg").write_bytes(jpeg)
        images.append(jpeg)
        given = joints[i] * scale * (FLIP if axes == "opengl" else 1)
        pixels = joints[i] @ K.T
        labels: dict[str, Any] = {"side": "right"}
        labels["joints_2d"] = (pixels[:, :2] / pixels[:, 2:])[list(order)].tolist()
        if not only_2d:
            labels["joints_3d"] = given[list(order)].tolist()
        record: dict[str, Any] = {"image": f"images/{i:03d}.jpg", "hands": [labels]}
        if not only_2d:
            record["K"] = K.tolist()
        records.append(record)
    header = {"handloom": 1, "units": units, "axes": axes, "joint_order": joint_order}
    folder = Folder(root=root, header=header, records=records, joints=joints, K=K, images=images)
    folder.write()
    return folder
