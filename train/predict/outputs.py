"""Outputs of ``train predict``: records, meshes, pictures.

Everything is in the camera of the original image: metres, OpenCV axes (x right, y down, z forward);
a left hand is output as a left hand, even if its crop was mirrored.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8

from model.draw import draw_skeleton
from model.hand import JOINT_NAMES
from pipeline.app.files import replace_file
from train.config import MeshFormat
from train.predict.boxes import HandBox
from train.predict.inputs import IMAGE_SUFFIXES
from train.predict.shade import Surface, draw_surfaces

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
    "camera": "where K comes from: intrinsics, exif or assumed",
    "object": "rotmat [3, 3] and transl [3], metres: p_camera = rotmat p_object + transl; arti_rad "
    "is the angle of its moving part, radians",
    "orientation": "pixels of the upright image: an EXIF orientation was applied",
}
_LONGEST_NAME: Final = 180
"""Bytes of a picture's file name: file systems take 255, and temporary files are longer."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundObject:
    """The object that the hands of an image act on: ``p_cam = rotmat @ p_object + transl``."""

    rotmat: Float64[np.ndarray, "3 3"]
    transl: Float64[np.ndarray, " 3"]
    arti_rad: float


def object_record(found: FoundObject) -> dict[str, Any]:
    """Return an object as JSON values."""
    return {
        "rotmat": _rounded(found.rotmat, 6),
        "transl": _rounded(found.transl, 6),
        "arti_rad": round(found.arti_rad, 6) if math.isfinite(found.arti_rad) else None,
    }


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


def write_mesh(
    path: Path, hand: Hand, faces: Int64[np.ndarray, "1538 3"], kind: MeshFormat
) -> None:
    """Write a mesh, metres; ``faces`` are the right model's."""
    assert hand.vertices is not None
    own = faces_of(faces, is_right=hand.box.is_right)
    if kind is MeshFormat.glb:
        import trimesh

        upright = hand.vertices * (1, -1, -1)  # a rotation: glTF has y up and looks along -z
        mesh = trimesh.Trimesh(upright, own, process=False)
        data = mesh.export(file_type="glb")
        assert isinstance(data, bytes)
    else:
        rows = ["# metres; x right, y down, z forward (OpenCV): upside down in most viewers"]
        rows += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in hand.vertices.tolist()]
        rows += [f"f {a} {b} {c}" for a, b, c in (own + 1).tolist()]
        data = ("\n".join(rows) + "\n").encode("ascii")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data, durable=False)


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


def picture_of(
    rgb: UInt8[np.ndarray, "h w 3"],
    hands: Sequence[Hand],
    faces: Int64[np.ndarray, "1538 3"] | None,
) -> UInt8[np.ndarray, "h W 3"]:
    """Return the image with the skeletons of its hands and, beside it, with their meshes."""
    skeletons = rgb.copy()
    for hand in hands:
        draw_hand(skeletons, hand)
    if faces is None:
        return skeletons
    meshes = rgb.copy()
    draw_surfaces(meshes, [_surface(hand, faces) for hand in hands if hand.vertices is not None])
    return np.concatenate((skeletons, meshes), 1)


def draw_hand(canvas: UInt8[np.ndarray, "h w 3"], hand: Hand) -> None:
    """Draw the skeleton of a hand over its image, in place."""
    x0, _, x1, _ = hand.square_xyxy
    thickness = max(1, round(min(x1 - x0, max(canvas.shape[:2])) / 120))
    draw_skeleton(canvas, hand.joints_2d, np.isfinite(hand.joints_2d).all(-1), thickness=thickness)


def _surface(hand: Hand, faces: Int64[np.ndarray, "1538 3"]) -> Surface:
    assert hand.vertices is not None
    assert hand.vertices_2d is not None
    own = faces_of(faces, is_right=hand.box.is_right)
    return Surface(vertices=hand.vertices, pixels=hand.vertices_2d, faces=own.astype(np.int64))


def _rounded(values: Float[np.ndarray, "*n"], digits: int) -> Any:
    """Return nested lists; non-finite values become null."""
    if values.ndim > 1:
        return [_rounded(row, digits) for row in values]
    return [round(v, digits) if math.isfinite(v) else None for v in values.tolist()]
