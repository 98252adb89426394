"""Placement of the synthetic hand's 778 vertices on its implicit surface.

They start on simple tubes along the skeleton and are moved onto the implicit surface. Design frame
of ``hand_shape``, metres.
"""

from typing import Final

import numpy as np

from model.hand import FINGERS
from preprocess.sample.hand.shape import (
    Measures,
    Skeleton,
    finger_radius,
    skeleton,
    surface_distance,
    surface_gradient,
    tip_radius,
)
from preprocess.sample.hand.topology import (
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
    return np.asarray(matrix / matrix.sum(1, keepdims=True))


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
        radius = finger_radius(finger, 0.0, measures.girth * measures.size)
        centre = chain[0] + 0.46 * (chain[1] - chain[0])
        ring = [centre + radius * (np.sin(a) * nail - np.cos(a) * side) for a in _octagon()]
        targets = [
            2 * slot,
            2 * slot + 1,
            2 * slot + 2,
            9,
            *range(16 - 2 * slot, 19 - 2 * slot),
            19,
        ]
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
    round_tip = tip_radius(finger, girth)
    first = 0.50 if finger == "thumb" else 0.52
    lengths = np.linalg.norm(np.diff(chain, axis=0), axis=1)
    start = np.concatenate([[0.0], np.cumsum(lengths)])
    begin = first * lengths[0] + 0.12 * lengths[0]
    end = start[-1] - round_tip
    body = count - 2
    stations = np.concatenate(
        [np.linspace(begin, end, body), end + round_tip * np.sin([0.70, 1.22])]
    )
    shrink = np.concatenate([np.ones(body), np.cos([0.70, 1.22])])
    angles = np.deg2rad(np.arange(columns) * 36.0) if finger == "thumb" else _octagon()
    rings = np.zeros((count, columns, 3))
    for i, (s, scale) in enumerate(zip(stations, shrink, strict=True)):
        bone = min(int(np.searchsorted(start, s, side="right")) - 1, 2)
        axis = (chain[bone + 1] - chain[bone]) / lengths[bone]
        centre = chain[bone] + (s - start[bone]) * axis
        fraction = min(s, end) / end
        radius = finger_radius(finger, fraction, girth) * scale
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
