"""Outputs of ``train predict``: records, meshes, pictures.

Everything is in the camera of the original image: metres, OpenCV axes (x right, y down, z forward);
a left hand is output as a left hand, even if its crop was mirrored.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8

from model.draw import draw_skeleton
from model.hand import JOINT_NAMES
from pipeline.app.files import replace_file
from train.predict.boxes import HandBox
from train.predict.inputs import IMAGE_SUFFIXES

FORMAT: Final = "handloom-predict-1"
UNITS: Final = {
    "joints_3d": "[21, 3] metres, camera of the image, x right, y down, z forward",
    "joints_2d": "[21, 2] pixels of the image, (0, 0) is the centre of the top-left pixel; null "
    "behind the camera",
    "theta": "[48] MANO axis-angle, radians, absolute (mean added), root first; of the hand's side",
    "beta": "[10] MANO shape, left hands for the model with its shape basis fixed",
    "transl": "[3] metres, smplx's meaning: joint0 = J0(beta) + transl",
    "square_xyxy": "outer edges of the crop that the network saw, pixels",
    "K": "[3, 3] intrinsics of the image, pixels",
    "orientation": "pixels of the upright image: an EXIF orientation was applied",
}
_LONGEST_NAME: Final = 180
"""Bytes of a picture's file name: file systems take 255, and temporary files are longer."""
_OUTLINE_RGB: Final = (255, 255, 255)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hand:
    """One predicted hand in the camera of its image."""

    box: HandBox
    square_xyxy: tuple[float, float, float, float]
    joints_3d: Float64[np.ndarray, "21 3"]
    joints_2d: Float64[np.ndarray, "21 2"]
    """NaN behind the camera."""
    vertices: Float64[np.ndarray, "778 3"] | None = None
    vertices_2d: Float64[np.ndarray, "778 2"] | None = None
    theta: Float64[np.ndarray, " 48"] | None = None
    beta: Float64[np.ndarray, " 10"] | None = None
    transl: Float64[np.ndarray, " 3"] | None = None

    @property
    def side(self) -> str:
        """``right`` or ``left``."""
        return "right" if self.box.is_right else "left"


def hand_record(hand: Hand) -> dict[str, Any]:
    """Return a hand as JSON values, rounded to micrometres and thousandths of a pixel."""
    record: dict[str, Any] = {
        "side": hand.side,
        "box_xyxy": None if hand.box.box_xyxy is None else list(hand.box.box_xyxy),
        "square_xyxy": [round(edge, 3) for edge in hand.square_xyxy],
        "joints_3d": _rounded(hand.joints_3d, 6),
        "joints_2d": _rounded(hand.joints_2d, 3),
    }
    for name in ("theta", "beta", "transl"):
        value = getattr(hand, name)
        if value is not None:
            record[name] = _rounded(value, 6)
    return record


def head_of(about: dict[str, Any]) -> dict[str, Any]:
    """Return the shared metadata of predictions.json."""
    return {"format": FORMAT, **about, "joint_names": list(JOINT_NAMES), "units": UNITS}


def faces_of(faces: Int64[np.ndarray, "1538 3"], *, is_right: bool) -> Int64[np.ndarray, "1538 3"]:
    """Return MANO's faces, counter-clockwise from outside; flipped for a left hand."""
    return faces if is_right else faces[:, ::-1]


def write_obj(path: Path, hand: Hand, faces: Int64[np.ndarray, "1538 3"]) -> None:
    """Write a mesh, metres; ``faces`` are the right model's."""
    assert hand.vertices is not None
    rows = ["# metres; x right, y down, z forward (OpenCV): upside down in most viewers"]
    rows += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in hand.vertices.tolist()]
    turned = faces_of(faces, is_right=hand.box.is_right) + 1
    rows += [f"f {a} {b} {c}" for a, b, c in turned.tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, ("\n".join(rows) + "\n").encode("ascii"), durable=False)


def picture_name(name: str, *, is_video: bool) -> str:
    """Return the file name of an image's picture, unique per image."""
    if is_video:
        return f"{int(name):06d}.jpg"
    path = Path(name)
    if path.suffix.lower() not in (".jpg", ".jpeg") or Path(path.stem).suffix in IMAGE_SUFFIXES:
        name = f"{name}.jpg"
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{os.fsdecode(encoded[: _LONGEST_NAME - 30])}-{digest}.jpg"


def draw_hand(
    canvas: UInt8[np.ndarray, "h w 3"], hand: Hand, faces: Int64[np.ndarray, "1538 3"] | None
) -> None:
    """Draw the mesh outline and the skeleton of a hand over its image, in place."""
    x0, _, x1, _ = hand.square_xyxy
    thickness = max(1, round(min(x1 - x0, max(canvas.shape[:2])) / 120))
    if faces is not None and hand.vertices_2d is not None:
        _draw_outline(canvas, hand.vertices_2d, faces, thickness)
    draw_skeleton(canvas, hand.joints_2d, np.isfinite(hand.joints_2d).all(-1), thickness=thickness)


def _draw_outline(
    canvas: UInt8[np.ndarray, "h w 3"],
    vertices_2d: Float[np.ndarray, "778 2"],
    faces: Int64[np.ndarray, "1538 3"],
    thickness: int,
) -> None:
    height, width = canvas.shape[:2]
    seen = _drawable(vertices_2d)
    mask = np.zeros((height, width), np.uint8)
    points = np.where(seen[:, None], vertices_2d, 0.0).round().astype(np.int32)
    for triangle in points[faces[seen[faces].all(-1)]]:  # one by one: together they would cancel
        cv2.fillConvexPoly(mask, triangle, 1)
    outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outline, -1, _OUTLINE_RGB, max(1, thickness // 2), cv2.LINE_AA)


def _drawable(points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    near: Bool[np.ndarray, " n"] = np.isfinite(points).all(-1) & (np.abs(points) < 30_000).all(-1)
    return near


def _rounded(values: Float[np.ndarray, "*n"], digits: int) -> Any:
    """Return nested lists; non-finite values become null."""
    if values.ndim > 1:
        return [_rounded(row, digits) for row in values]
    return [round(v, digits) if math.isfinite(v) else None for v in values.tolist()]
