"""The shape of the synthetic hand: measures, skeleton, implicit surface.

Everything here is in the design frame, metres: ``u`` from the wrist to the fingertips, ``v`` out
of the back of the hand, ``w`` towards the thumb. The wrist joint is the origin. The surface is the
zero set of a smooth union of rounded parts, so it moves smoothly with the measures.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from model.hand import FINGERS
from preprocess.sample.hand.topology import SLOTS

_MCP: Final = {
    "index": (0.0900, 0.0030, 0.0255),
    "middle": (0.0940, 0.0050, 0.0035),
    "ring": (0.0885, 0.0035, -0.0170),
    "little": (0.0790, -0.0010, -0.0355),
}
_THUMB_CMC: Final = (0.0200, -0.0100, 0.0215)
_PHALANGES: Final = {
    "thumb": (0.0420, 0.0330, 0.0285),
    "index": (0.0390, 0.0245, 0.0235),
    "middle": (0.0430, 0.0275, 0.0245),
    "ring": (0.0395, 0.0265, 0.0245),
    "little": (0.0315, 0.0200, 0.0220),
}
_DIRECTION: Final = {
    "thumb": ((0.700, -0.300, 0.650), (0.800, -0.200, 0.560), (0.860, -0.150, 0.480)),
    "index": ((0.990, -0.030, 0.095),) * 3,
    "middle": ((0.999, -0.030, 0.015),) * 3,
    "ring": ((0.993, -0.030, -0.080),) * 3,
    "little": ((0.965, -0.030, -0.220),) * 3,
}
_NAIL_NORMAL: Final = {
    "thumb": (-0.45, 0.62, 0.65),
    **dict.fromkeys(("index", "middle", "ring", "little"), (0.0, 1.0, 0.0)),
}
# Radius along a finger: fraction of its length from the first joint on, then metres.
_PROFILE_AT: Final = (-0.30, 0.00, 0.20, 0.42, 0.56, 0.70, 0.88, 1.00)
_PROFILE: Final = {
    "thumb": (0.0150, 0.0150, 0.0142, 0.0115, 0.0120, 0.0108, 0.0105, 0.0085),
    "index": (0.0106, 0.0114, 0.0109, 0.0099, 0.0095, 0.0087, 0.0085, 0.0070),
    "middle": (0.0106, 0.0117, 0.0111, 0.0101, 0.0098, 0.0089, 0.0086, 0.0071),
    "ring": (0.0104, 0.0110, 0.0105, 0.0095, 0.0091, 0.0084, 0.0081, 0.0067),
    "little": (0.0098, 0.0098, 0.0092, 0.0084, 0.0080, 0.0073, 0.0071, 0.0058),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """Scale factors of the mean hand; all 1 is the template."""

    finger: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FINGERS, 1.0))
    palm_length: float = 1.0
    palm_width: float = 1.0
    thickness: float = 1.0
    girth: float = 1.0
    size: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """Joints of one hand: ``wrist`` [3]; per finger ``chain`` [4, 3] (three joints and the tip).

    ``nail[finger]`` [3]: unit vector out of the nail, square to the last phalanx.
    """

    wrist: np.ndarray
    chain: dict[str, np.ndarray]
    nail: dict[str, np.ndarray]


def skeleton(measures: Measures) -> Skeleton:
    """Return the joints in the design frame."""
    palm = np.array([measures.palm_length, measures.thickness, measures.palm_width]) * measures.size
    chain, nail = {}, {}
    for finger in FINGERS:
        base = np.array(_THUMB_CMC if finger == "thumb" else _MCP[finger]) * palm
        bones = np.array(_DIRECTION[finger])
        bones = bones / np.linalg.norm(bones, axis=1, keepdims=True)
        lengths = np.array(_PHALANGES[finger]) * measures.finger[finger] * measures.size
        chain[finger] = np.vstack([base, base + np.cumsum(bones * lengths[:, None], axis=0)])
        normal = np.array(_NAIL_NORMAL[finger])
        normal = normal - bones[-1] * (normal @ bones[-1])
        nail[finger] = normal / np.linalg.norm(normal)
    return Skeleton(wrist=np.zeros(3), chain=chain, nail=nail)


def _round_cone(
    points: np.ndarray, a: np.ndarray, b: np.ndarray, r_a: float, r_b: float
) -> np.ndarray:
    """Distance to a segment minus a radius that varies linearly along it."""
    axis = b - a
    along = np.clip(((points - a) @ axis) / (axis @ axis), 0.0, 1.0)
    near = points - a - along[:, None] * axis
    return np.asarray(np.linalg.norm(near, axis=1) - (r_a + (r_b - r_a) * along))


def _finger_distance(
    points: np.ndarray, chain: np.ndarray, nail: np.ndarray, finger: str, girth: float
) -> np.ndarray:
    """Distance to a bent tube with the finger's radius profile and a rounded, flatter tip."""
    last = chain[3] - chain[2]
    end = chain[3] - last / np.linalg.norm(last) * tip_radius(finger, girth)
    nodes = np.vstack([chain[:3], end])
    lengths = np.linalg.norm(np.diff(nodes, axis=0), axis=1)
    total = lengths.sum()
    start = np.concatenate([[0.0], np.cumsum(lengths)])
    best = np.full(len(points), np.inf)
    for i, length in enumerate(lengths):
        axis = (nodes[i + 1] - nodes[i]) / length
        # The first bone extends into the palm, so that the tube has no round end there.
        low = -0.3 * total if i == 0 else 0.0
        along = np.clip((points - nodes[i]) @ axis, low, length)
        offset = points - nodes[i] - along[:, None] * axis
        fraction = (start[i] + along) / total
        radius = np.interp(fraction, _PROFILE_AT, np.array(_PROFILE[finger]) * girth)
        flat = 1.0 + 0.16 * np.clip((fraction - 0.6) / 0.4, 0.0, 1.0)
        out = offset @ nail
        squared = (offset**2).sum(1) + (flat**2 - 1.0) * out**2
        best = np.minimum(best, np.sqrt(squared) - radius)
    return best


def finger_radius(finger: str, fraction: float, girth: float) -> float:
    """Radius of a finger at a fraction of its length, metres."""
    return float(np.interp(fraction, _PROFILE_AT, _PROFILE[finger])) * girth


def tip_radius(finger: str, girth: float) -> float:
    """Radius of a finger's round tip, metres."""
    return _PROFILE[finger][-1] * girth


def surface_distance(points: np.ndarray, bones: Skeleton, measures: Measures) -> np.ndarray:
    """Return the implicit surface's value [n], metres, negative inside. Zero on the skin."""
    size = measures.size
    girth = measures.girth * size
    tubes = {
        finger: _finger_distance(points, bones.chain[finger], bones.nail[finger], finger, girth)
        for finger in FINGERS
    }
    fingers = _smooth_min([tubes[finger] for finger in SLOTS], 0.0012 * size)
    parts = [_round_cone(points, *part) for part in _palm_parts(bones, measures)]
    return _smooth_min([_smooth_min(parts, 0.0035 * size), fingers, tubes["thumb"]], 0.003 * size)


def _palm_parts(
    bones: Skeleton, measures: Measures
) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
    """Round cones of the palm and wrist: both ends and the radius at each, metres."""
    thick = measures.thickness * measures.size
    stretch = (
        np.array([measures.palm_length, measures.thickness, measures.palm_width]) * measures.size
    )

    def at(u: float, v: float, w: float) -> np.ndarray:
        return np.asarray(np.array([u, v, w]) * stretch)

    thumb = bones.chain["thumb"]
    carpals = {"index": 0.010, "middle": 0.003, "ring": -0.006, "little": -0.013}
    metacarpals = [
        (at(0.006, 0.001, w), bones.chain[finger][0] + at(0.0, -0.003, 0.0), 0.0128, 0.0098)
        for finger, w in carpals.items()
    ]
    wrist = [
        (at(-0.060, 0.0, w), at(0.002, 0.0, w), 0.0155, 0.0140)
        for w in (-0.0125, -0.004, 0.004, 0.0125)
    ]
    pads = [
        # Ball of the little finger, pad below the fingers, web beside the thumb, ball of the thumb.
        (at(0.014, -0.007, -0.0180), at(0.060, -0.006, -0.0300), 0.0120, 0.0095),
        (at(0.083, -0.005, 0.0200), at(0.073, -0.0055, -0.0300), 0.0085, 0.0075),
        (0.45 * thumb[0] + 0.55 * thumb[1], at(0.050, -0.002, 0.0200), 0.0105, 0.0080),
        (at(0.014, -0.009, 0.0100), 0.25 * thumb[0] + 0.75 * thumb[1], 0.0130, 0.0125),
    ]
    return [(a, b, r_a * thick, r_b * thick) for a, b, r_a, r_b in metacarpals + wrist + pads]


def _smooth_min(values: list[np.ndarray], width: float) -> np.ndarray:
    """Soft minimum: ``-width log sum exp(-value / width)``."""
    stacked = np.stack(values)
    low = stacked.min(0)
    return np.asarray(low - width * np.log(np.exp((low - stacked) / width).sum(0)))


def surface_gradient(points: np.ndarray, bones: Skeleton, measures: Measures) -> np.ndarray:
    """Central differences of the surface value, [n, 3]."""
    step = 1e-6
    shifts = np.concatenate([np.eye(3), -np.eye(3)]) * step
    probes = (points[None] + shifts[:, None]).reshape(-1, 3)
    values = surface_distance(probes, bones, measures).reshape(6, -1)
    return np.asarray(((values[:3] - values[3:]) / (2 * step)).T)
