"""Guess likely mistakes in annotations: unit, axes, joint order, side, camera.

Each rule measures the hands of a sample of the images and compares the header's reading with the
others: a palm of 90 m is in millimetres.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from model.hand import BONES, MIDDLE_MCP, NUM_JOINTS, ROOT
from preprocess.camera import project
from preprocess.sources.folder.records import JOINT_ORDERS, UNITS, Header, Image

_MOST_HANDS: Final = 4096
_FEW: Final = 3
"""Fewer hands prove nothing."""
_PALM_M: Final = (0.03, 0.25)
"""Distance from wrist to middle knuckle, of any hand."""
_SHORTER: Final = 0.9
"""Bones are that much shorter in the right joint order."""
_MCPS: Final = (5, 9, 13, 17)
_TIPS: Final = (8, 12, 16, 20)
_CURLED: Final = 0.3
"""Fingertips off the plane of the palm, over its length: fingers only bend to the palm."""
_REPROJECTION: Final = 0.25
"""Median distance of projected from given 2D joints, over the size of the hand in the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One likely mistake."""

    text: str
    is_certain: bool
    """Training on it is of no use: a build stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    """One hand: joints as in the file, in its order; NaN where not annotated."""

    joints_3d: Float[np.ndarray, "21 3"]
    joints_2d: Float[np.ndarray, "21 2"]
    is_right: bool
    K: Float[np.ndarray, "3 3"]


@dataclass(kw_only=True, slots=True)
class Sampled:
    """Hands of a sample of the images, drawn as they are read."""

    header: Header
    hands: list[_Sample] = field(default_factory=list)
    num_seen: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, image: Image) -> None:
        """Consider the hands of an image: each of the file ends in the sample equally likely."""
        for hand in image.hands:
            if hand.joints_3d is None and hand.joints_2d is None:
                continue
            self.num_seen += 1
            sample = _Sample(
                joints_3d=_points(hand.joints_3d, 3),
                joints_2d=_points(hand.joints_2d, 2),
                is_right=hand.side == "right",
                K=np.full((3, 3), np.nan) if image.K is None else np.array(image.K),
            )
            if len(self.hands) < _MOST_HANDS:
                self.hands.append(sample)
            elif (place := int(self.rng.integers(self.num_seen))) < _MOST_HANDS:
                self.hands[place] = sample


def _points(joints: Sequence[Sequence[float] | None] | None, size: int) -> np.ndarray:
    if joints is None:
        return np.full((NUM_JOINTS, size), np.nan)
    return np.array([[np.nan] * size if joint is None else joint for joint in joints])


def mistakes(sampled: Sampled) -> list[Mistake]:
    """Return the likely mistakes of an annotation file, the certain ones first."""
    hands, header = sampled.hands, sampled.header
    if len(hands) < _FEW:
        return []
    order = header.joint_order
    permutation = list(JOINT_ORDERS[order] if isinstance(order, str) else order)
    raw_3d = np.stack([hand.joints_3d for hand in hands])
    raw_2d = np.stack([hand.joints_2d for hand in hands])
    joints_2d = raw_2d[:, permutation]
    opengl = np.diag([1.0, -1.0, -1.0])
    camera = raw_3d[:, permutation] * UNITS[header.units]
    camera = camera @ opengl if header.axes == "opengl" else camera
    found = [
        *_order(header, raw_3d, raw_2d, permutation),
        *_unit(header, camera),
        *_axes(header, camera),
        *_side(camera, np.array([hand.is_right for hand in hands])),
    ]
    if not found:
        found = _projection(camera, joints_2d, np.stack([hand.K for hand in hands]))
    return sorted(found, key=lambda mistake: not mistake.is_certain)


def _order(
    header: Header,
    raw_3d: Float[np.ndarray, "n 21 3"],
    raw_2d: Float[np.ndarray, "n 21 2"],
    permutation: list[int],
) -> list[Mistake]:
    has_3d = np.isfinite(raw_3d).all((-1, -2))
    raw: np.ndarray = raw_3d[has_3d] if has_3d.any() else raw_2d
    raw = raw[np.isfinite(raw).all((-1, -2))]
    if len(raw) < _FEW:
        return []
    lengths = {name: _bones(raw[:, list(p)]) for name, p in JOINT_ORDERS.items()}
    best = min(lengths, key=lambda name: lengths[name])
    own = _bones(raw[:, permutation])
    if own <= 0 or lengths[best] >= _SHORTER * own:
        return []
    text = (
        f"joint_order: the bones are {1 - lengths[best] / own:.0%} shorter if the joints are in "
        f"the order {best!r} instead of {header.joint_order!r}; pass that one"
    )
    return [Mistake(text=text, is_certain=True)]


def _bones(joints: Float[np.ndarray, "n 21 d"]) -> float:
    """Return the median total length of the bones."""
    parents, children = map(list, zip(*BONES, strict=True))
    lengths = np.linalg.norm(joints[:, children] - joints[:, parents], axis=-1)
    return float(np.median(lengths.sum(-1)))


def _unit(header: Header, camera: Float[np.ndarray, "n 21 3"]) -> list[Mistake]:
    palms = np.linalg.norm(camera[:, MIDDLE_MCP] - camera[:, ROOT], axis=-1)
    palms = palms[np.isfinite(palms)]
    if len(palms) < _FEW or _PALM_M[0] <= np.median(palms) <= _PALM_M[1]:
        return []
    palm = float(np.median(palms))
    given = palm / UNITS[header.units]
    fitting = [name for name, m in UNITS.items() if _PALM_M[0] <= given * m <= _PALM_M[1]]
    fix = f"the joints look like {fitting[0]}" if fitting else "no unit of m, cm, mm fits"
    text = (
        f"units: a palm measures {palm:.3g} m from wrist to middle knuckle in units "
        f"{header.units!r}, expected about 0.09 m; {fix}"
    )
    return [Mistake(text=text, is_certain=True)]


def _axes(header: Header, camera: Float[np.ndarray, "n 21 3"]) -> list[Mistake]:
    depth = camera[..., 2][np.isfinite(camera[..., 2])]
    if len(depth) < _FEW or np.mean(depth <= 0) < 0.5:
        return []
    other = "opengl" if header.axes == "opencv" else "opencv"
    text = (
        f"axes: {np.mean(depth <= 0):.0%} of the joints are behind the camera with axes "
        f"{header.axes!r}; expected z > 0 after the conversion: the joints may be {other}, in "
        "the world frame, or relative to the wrist, which a camera cannot show"
    )
    return [Mistake(text=text, is_certain=True)]


def _side(camera: Float[np.ndarray, "n 21 3"], right: Bool[np.ndarray, " n"]) -> list[Mistake]:
    """Compare the sides with the way fingers bend: towards the palm.

    The normal of a right hand's palm, wrist to index knuckle times wrist to little knuckle, points
    out of the palm.
    """
    wrist = camera[:, ROOT]
    normal = np.cross(camera[:, _MCPS[0]] - wrist, camera[:, _MCPS[-1]] - wrist)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    palm = np.linalg.norm(camera[:, MIDDLE_MCP] - wrist, axis=-1)
    offset = camera[:, _TIPS].mean(1) - camera[:, _MCPS].mean(1)
    bend = (offset * normal).sum(-1) / palm
    curled = np.isfinite(bend) & (np.abs(bend) > _CURLED)
    if curled.sum() < _FEW:
        return []
    wrong = float(np.mean((bend > 0)[curled] != right[curled]))
    if wrong < 0.8:
        return []
    text = (
        f"side: {wrong:.0%} of the hands bend their fingers to the back of the hand: right and "
        "left may be exchanged, or the images and joints mirrored"
    )
    return [Mistake(text=text, is_certain=False)]


def _projection(
    camera: Float[np.ndarray, "n 21 3"],
    joints_2d: Float[np.ndarray, "n 21 2"],
    K: Float[np.ndarray, "n 3 3"],
) -> list[Mistake]:
    distance = np.linalg.norm(project(camera, K) - joints_2d, axis=-1)
    has_both = np.isfinite(distance).any(-1)
    if has_both.sum() < _FEW:
        return []
    distance, seen = distance[has_both], joints_2d[has_both]
    size = np.linalg.norm(np.nanmax(seen, 1) - np.nanmin(seen, 1), axis=-1)
    share = np.nanmedian(distance, axis=1) / np.maximum(size, 1e-6)
    if np.median(share) < _REPROJECTION:
        return []
    text = (
        f"K: joints_3d project {np.median(np.nanmedian(distance, axis=1)):.0f} px from joints_2d, "
        f"{np.median(share):.0%} of the size of a hand: K may be of another image size, or "
        "the joints of another camera"
    )
    return [Mistake(text=text, is_certain=False)]
