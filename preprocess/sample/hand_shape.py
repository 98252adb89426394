"""The surface of the stand-in hand: measures, skeleton, implicit surface, vertex positions.

Everything here is in the design frame, metres: ``u`` from the wrist to the fingertips, ``v`` out
of the back of the hand, ``w`` towards the thumb. The wrist joint is the origin. The surface is the
zero set of a smooth union of rounded parts; the vertices start on simple tubes and are moved onto
it, so a change of the measures moves every vertex smoothly.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from model.hand import FINGERS
from preprocess.sample.hand_topology import (
    NUM_COLUMNS,
    NUM_RINGS,
    PALM_COLUMNS,
    PALM_RINGS,
    SLOTS,
    WRIST_LOOP,
    HandTopology,
)

WRIST_CUT_M: Final = -0.020
"""``u`` of the open wrist loop."""

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
    """Factors on the mean hand; 1 everywhere is the template."""

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
    """Distance to a segment less a radius that runs linearly along it."""
    axis = b - a
    along = np.clip(((points - a) @ axis) / (axis @ axis), 0.0, 1.0)
    near = points - a - along[:, None] * axis
    return np.linalg.norm(near, axis=1) - (r_a + (r_b - r_a) * along)


def _finger_distance(
    points: np.ndarray, chain: np.ndarray, nail: np.ndarray, finger: str, girth: float
) -> np.ndarray:
    """Distance to a bent tube with the finger's radius profile and a rounded, flatter tip."""
    tip_radius = _PROFILE[finger][-1] * girth
    last = chain[3] - chain[2]
    end = chain[3] - last / np.linalg.norm(last) * tip_radius
    nodes = np.vstack([chain[:3], end])
    lengths = np.linalg.norm(np.diff(nodes, axis=0), axis=1)
    total = lengths.sum()
    start = np.concatenate([[0.0], np.cumsum(lengths)])
    best = np.full(len(points), np.inf)
    for i, length in enumerate(lengths):
        axis = (nodes[i + 1] - nodes[i]) / length
        # The first bone runs back into the palm, so that the tube has no round start there.
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


def surface_distance(points: np.ndarray, bones: Skeleton, measures: Measures) -> np.ndarray:
    """Return the implicit surface's value [n], metres, negative inside. Zero on the skin."""
    size = measures.size
    thick = measures.thickness * size
    stretch = np.array([measures.palm_length, measures.thickness, measures.palm_width]) * size

    def at(u: float, v: float, w: float) -> np.ndarray:
        return np.array([u, v, w]) * stretch

    girth = measures.girth * size
    parts = [
        _finger_distance(points, bones.chain[f], bones.nail[f], f, girth) for f in SLOTS
    ]
    fingers = _smooth_min(parts, 0.0012 * size)
    thumb = _finger_distance(
        points, bones.chain["thumb"], bones.nail["thumb"], "thumb", girth
    )
    palm = []
    carpals = {"index": 0.010, "middle": 0.003, "ring": -0.006, "little": -0.013}
    for finger, w in carpals.items():
        mcp = bones.chain[finger][0] + at(0.0, -0.003, 0.0)
        palm.append(_round_cone(points, at(0.006, 0.001, w), mcp, 0.0128 * thick, 0.0098 * thick))
    for w in (-0.0125, -0.004, 0.004, 0.0125):
        palm.append(
            _round_cone(points, at(-0.06, 0.0, w), at(0.002, 0.0, w), 0.0155 * thick, 0.0140 * thick)
        )
    # Little finger's ball of the palm, the pad below the fingers, the web beside the thumb.
    palm.append(
        _round_cone(
            points, at(0.014, -0.007, -0.0180), at(0.058, -0.006, -0.0305), 0.0120 * thick, 0.0095 * thick
        )
    )
    palm.append(
        _round_cone(
            points, at(0.083, -0.0060, 0.020), at(0.073, -0.0065, -0.030), 0.0085 * thick, 0.0075 * thick
        )
    )
    chain = bones.chain["thumb"]
    palm.append(
        _round_cone(
            points,
            0.45 * chain[0] + 0.55 * chain[1],
            at(0.050, -0.002, 0.020),
            0.0105 * thick,
            0.0080 * thick,
        )
    )
    palm.append(
        _round_cone(
            points, at(0.012, -0.008, 0.012), 0.25 * chain[0] + 0.75 * chain[1], 0.0120 * thick, 0.0120 * thick
        )
    )
    body = _smooth_min(palm, 0.0035 * size)
    return _smooth_min([body, fingers, thumb], 0.0030 * size)


def _smooth_min(values: list[np.ndarray], width: float) -> np.ndarray:
    """Soft minimum: ``-width log sum exp(-value / width)``."""
    stacked = np.stack(values)
    low = stacked.min(0)
    return low - width * np.log(np.exp((low - stacked) / width).sum(0))


def surface_gradient(points: np.ndarray, bones: Skeleton, measures: Measures) -> np.ndarray:
    """Central differences of the surface value, [n, 3]."""
    step = 1e-6
    shifts = np.concatenate([np.eye(3), -np.eye(3)]) * step
    probes = (points[None] + shifts[:, None]).reshape(-1, 3)
    values = surface_distance(probes, bones, measures).reshape(6, -1)
    return ((values[:3] - values[3:]) / (2 * step)).T


def place_vertices(topology: HandTopology, measures: Measures) -> np.ndarray:
    """Return the 778 vertices in the design frame, metres.

    Start positions on tubes, then rounds of smoothing along the surface (palm, webs, roots of the
    fingers) and Newton steps onto it.
    """
    bones = skeleton(measures)
    points = _start_positions(topology, bones, measures)
    neighbours = neighbour_mean(topology.faces, len(points))
    slack = _smoothing_weights(topology, len(points))
    for _ in range(40):
        points = points + slack[:, None] * (neighbours @ points - points)
        points = _onto_surface(points, bones, measures, topology, rounds=1)
    return _onto_surface(points, bones, measures, topology, rounds=4)


def _onto_surface(
    points: np.ndarray, bones: Skeleton, measures: Measures, topology: HandTopology, *, rounds: int
) -> np.ndarray:
    """Newton steps onto the surface; the wrist loop stays in its plane."""
    for _ in range(rounds):
        gradient = surface_gradient(points, bones, measures)
        gradient[topology.wrist, 0] = 0.0
        value = surface_distance(points, bones, measures)
        step = value / np.maximum((gradient**2).sum(1), 0.25)
        limit = 0.004
        points = points - np.clip(step, -limit, limit)[:, None] * gradient
    return points


def neighbour_mean(faces: np.ndarray, count: int) -> np.ndarray:
    """Matrix that replaces every vertex by the mean of its neighbours."""
    matrix = np.zeros((count, count))
    for i in range(3):
        a, b = faces[:, i], faces[:, (i + 1) % 3]
        matrix[a, b] = matrix[b, a] = 1.0
    return matrix / matrix.sum(1, keepdims=True)


def _smoothing_weights(topology: HandTopology, count: int) -> np.ndarray:
    """How far a vertex follows its neighbours: palm and webs freely, fingertips not at all."""
    slack = np.zeros(count)
    slack[topology.palm[topology.palm >= 0]] = 0.5
    slack[topology.webs] = 0.4
    slack[topology.extra] = 0.5
    for finger in FINGERS:
        steps = (0.5, 0.5, 0.45, 0.4, 0.3, 0.15) if finger == "thumb" else (0.3, 0.15, 0.05)
        for ring, weight in zip(topology.rings[finger], steps, strict=False):
            slack[ring] = weight
    return slack


def _start_positions(topology: HandTopology, bones: Skeleton, measures: Measures) -> np.ndarray:
    """Vertices on plain tubes along the skeleton."""
    points = np.zeros((int(topology.faces.max()) + 1, 3))
    size = measures.size
    wide = np.array([1.0, measures.thickness, measures.palm_width]) * size
    cut = WRIST_CUT_M * size
    points[topology.wrist] = _ellipse(WRIST_LOOP, cut, (0.0165, 0.0275)) * [1.0, *wide[1:]]
    start = _ellipse(PALM_COLUMNS, cut, (0.0165, 0.0275)) * [1.0, *wide[1:]]
    outer, webs = _finger_roots(bones, measures)
    for ring in range(PALM_RINGS):
        t = (ring + 1) / PALM_RINGS
        row = (1.0 - t) * start + t * outer
        here = topology.palm[ring] >= 0
        points[topology.palm[ring][here]] = row[here]
    points[topology.webs] = webs
    points[topology.extra] = points[topology.extra_quads].mean(1)
    for finger in FINGERS:
        rings, tip = _finger_rings(finger, bones, measures)
        points[topology.rings[finger]] = rings
        points[topology.poles[finger]] = tip
    return points


def _ellipse(count: int, u: float, half: tuple[float, float]) -> np.ndarray:
    """Closed ring around the wrist from the ulnar dorsal corner, over the back, to the thumb."""
    # Column 0 is the ulnar end of the back, column 9 of 20 the thumb's side.
    angle = np.pi * (1.0 - (np.arange(count) / count * 20 + 1.0) / 10.0)
    return np.stack([np.full(count, u), half[0] * np.sin(angle), half[1] * np.cos(angle)], axis=1)


def _finger_roots(bones: Skeleton, measures: Measures) -> tuple[np.ndarray, np.ndarray]:
    """Outer loop [20, 3] of the four finger openings and the three webs between them [3, 3]."""
    columns = np.zeros((PALM_COLUMNS, 3))
    weight = np.zeros(PALM_COLUMNS)
    webs = np.zeros((len(SLOTS) - 1, 3))
    for slot, finger in enumerate(SLOTS):
        chain, nail = bones.chain[finger], bones.nail[finger]
        along = (chain[1] - chain[0]) / np.linalg.norm(chain[1] - chain[0])
        side = np.array([0.0, 0.0, 1.0]) - along * along[2]
        side /= np.linalg.norm(side)
        radius = _PROFILE[finger][1] * measures.girth * measures.size
        centre = chain[0] + 0.46 * (chain[1] - chain[0])
        ring = [centre + radius * (np.sin(a) * nail - np.cos(a) * side) for a in _octagon()]
        targets = [2 * slot, 2 * slot + 1, 2 * slot + 2, 9, *range(16 - 2 * slot, 19 - 2 * slot), 19]
        for i, (column, point) in enumerate(zip(targets, ring, strict=True)):
            if i == 3 and slot < 3:
                webs[slot] += 0.5 * point
            elif i == 7 and slot > 0:
                webs[slot - 1] += 0.5 * point
            else:
                columns[column] += point
                weight[column] += 1.0
    return columns / weight[:, None], webs


def _octagon() -> np.ndarray:
    """Angles of a finger's ring from its ulnar dorsal corner over the back to its thumb side."""
    return np.deg2rad([45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0, 360.0])


def _finger_rings(
    finger: str, bones: Skeleton, measures: Measures
) -> tuple[np.ndarray, np.ndarray]:
    """Rings [r, c, 3] of one finger and its tip [3]."""
    chain, nail = bones.chain[finger], bones.nail[finger]
    count, columns = NUM_RINGS[finger], NUM_COLUMNS[finger]
    girth = measures.girth * measures.size
    tip_radius = _PROFILE[finger][-1] * girth
    first = 0.50 if finger == "thumb" else 0.52
    lengths = np.linalg.norm(np.diff(chain, axis=0), axis=1)
    start = np.concatenate([[0.0], np.cumsum(lengths)])
    begin = first * lengths[0] + 0.12 * lengths[0]
    end = start[-1] - tip_radius
    body = count - 2
    stations = np.concatenate([np.linspace(begin, end, body), end + tip_radius * np.sin([0.70, 1.22])])
    shrink = np.concatenate([np.ones(body), np.cos([0.70, 1.22])])
    if finger == "thumb":
        angles = np.deg2rad(np.arange(columns) * 36.0)
    else:
        angles = _octagon()
    rings = np.zeros((count, columns, 3))
    for i, (s, scale) in enumerate(zip(stations, shrink, strict=True)):
        bone = min(int(np.searchsorted(start, s, side="right")) - 1, 2)
        axis = (chain[bone + 1] - chain[bone]) / lengths[bone]
        centre = chain[bone] + (s - start[bone]) * axis
        fraction = min(s, end) / end
        radius = np.interp(fraction, _PROFILE_AT, _PROFILE[finger]) * girth * scale
        up, side = _ring_frame(finger, axis, nail)
        if finger == "thumb":
            offsets = np.cos(angles)[:, None] * side + np.sin(angles)[:, None] * up
        else:
            offsets = np.sin(angles)[:, None] * up - np.cos(angles)[:, None] * side
        rings[i] = centre + radius * offsets
    return rings, chain[3].copy()


def _ring_frame(finger: str, axis: np.ndarray, nail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Up and sideways directions of a ring: fingers by nail and thumb side, thumb by the palm."""
    if finger == "thumb":
        up = np.array([0.0, 1.0, 0.0]) - axis * axis[1]
        up /= np.linalg.norm(up)
        side = np.array([1.0, 0.0, -1.0])
        side = side - axis * (side @ axis) - up * (side @ up)
        return up, side / np.linalg.norm(side)
    side = np.array([0.0, 0.0, 1.0]) - axis * axis[2]
    side /= np.linalg.norm(side)
    up = nail - axis * (nail @ axis) - side * (nail @ side)
    return up / np.linalg.norm(up), side
