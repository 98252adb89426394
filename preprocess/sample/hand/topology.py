"""Connectivity of the synthetic hand: 778 vertices, 1538 triangles, one open loop at the wrist.

The mesh is put together from tubes. The palm is a stack of rings of 20 vertices between a wrist
loop of 16 and a row of four finger openings; each finger is a stack of rings of 8 that ends in a
pole; the thumb is a stack of rings of 10 that leaves the palm through a hole in its radial side.
Euler's formula for a disk, ``V - E + F = 1``, then gives 1538 triangles for 778 vertices.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from model.hand import FINGERS, NUM_VERTICES, TIP_VERTICES

WRIST_LOOP: Final = 16
PALM_COLUMNS: Final = 20
PALM_RINGS: Final = 13
THUMB_HOLE_RINGS: Final = (3, 6)
"""First and last palm ring of the thumb's hole (ring 0 is the first one past the wrist loop)."""
RADIAL_COLUMN: Final = 9
ULNAR_COLUMN: Final = 19
SLOTS: Final = ("little", "ring", "middle", "index")
"""Fingers across the palm, from the ulnar to the radial side."""
NUM_RINGS: Final = {"thumb": 11, "index": 12, "middle": 13, "ring": 12, "little": 11}
"""Rings of each finger past the opening it grows from."""
NUM_COLUMNS: Final = {"thumb": 10, "index": 8, "middle": 8, "ring": 8, "little": 8}
_EXTRA_QUADS: Final = ((5, 13), (8, 14))
"""Palm quads (ring, column) with a vertex in the middle: they bring the count to 778."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandTopology:
    """Vertex ids of every part, numbered so that MANO's fingertip ids lie at the fingertips.

    ``faces`` [1538, 3]; ``wrist`` [16]; ``palm`` [13, 20], -1 inside the thumb's hole; ``webs`` [3]
    between neighbouring fingers of ``SLOTS``; ``extra_quads`` [2, 4] palm corners around each
    vertex of ``extra`` [2]; ``base[finger]`` the opening; ``rings[finger]`` [rings, columns];
    ``poles[finger]`` the tip.
    """

    faces: np.ndarray
    wrist: np.ndarray
    palm: np.ndarray
    webs: np.ndarray
    extra: np.ndarray
    extra_quads: np.ndarray
    base: dict[str, np.ndarray]
    rings: dict[str, np.ndarray]
    poles: dict[str, int]


def build_topology() -> HandTopology:
    """Return the connectivity; a pure function of the constants above."""
    free = iter(_free_ids())
    poles, last_ring = _tip_ids()

    def take(*shape: int) -> np.ndarray:
        return np.array([next(free) for _ in range(int(np.prod(shape)))]).reshape(shape)

    wrist = take(WRIST_LOOP)
    palm = np.full((PALM_RINGS, PALM_COLUMNS), -1)
    first, last = THUMB_HOLE_RINGS
    for ring in range(PALM_RINGS):
        inside = first < ring < last
        here = [c for c in range(PALM_COLUMNS) if not (inside and c == RADIAL_COLUMN)]
        palm[ring, here] = take(len(here))
    webs = take(len(SLOTS) - 1)
    extra = take(len(_EXTRA_QUADS))
    rings: dict[str, np.ndarray] = {}
    for finger in FINGERS:
        columns = NUM_COLUMNS[finger]
        named = last_ring[finger]
        tip_ring = np.array([*named, *take(columns - len(named))])
        rings[finger] = np.vstack([take(NUM_RINGS[finger] - 1, columns), tip_ring])
    base = {"thumb": _thumb_opening(palm)}
    for slot, finger in enumerate(SLOTS):
        base[finger] = _finger_opening(palm[-1], webs, slot)
    extra_quads = np.array([_palm_quad(palm, r, c) for r, c in _EXTRA_QUADS])
    faces = _fan_between(wrist, palm[0]) + _palm_faces(palm, extra, extra_quads)
    for finger in FINGERS:
        stack = [base[finger], *rings[finger]]
        for lower, upper in pairwise(stack):
            faces += _strip(lower, upper)
        tip = stack[-1]
        faces += [
            (int(a), int(b), poles[finger]) for a, b in zip(tip, np.roll(tip, -1), strict=True)
        ]
    return HandTopology(
        faces=np.array(faces, dtype=np.int64),
        wrist=wrist,
        palm=palm,
        webs=webs,
        extra=extra,
        extra_quads=extra_quads,
        base=base,
        rings=rings,
        poles=poles,
    )


def _tip_ids() -> tuple[dict[str, int], dict[str, list[int]]]:
    """Pole id per finger (FreiHAND's tip) and the other named tips, which open the last ring."""
    poles: dict[str, int] = {}
    others: dict[str, list[int]] = {}
    for slot, finger in enumerate(FINGERS):
        poles[finger] = TIP_VERTICES["freihand"].right[slot]
        named = {side[slot] for tips in TIP_VERTICES.values() for side in (tips.right, tips.left)}
        others[finger] = sorted(named - {poles[finger]})
    return poles, others


def _free_ids() -> list[int]:
    """Vertex ids that no fingertip convention names."""
    poles, others = _tip_ids()
    named = {*poles.values(), *(i for ids in others.values() for i in ids)}
    return [i for i in range(NUM_VERTICES) if i not in named]


def _thumb_opening(palm: np.ndarray) -> np.ndarray:
    """The ten vertices around the thumb's hole, starting on its distal side."""
    first, last = THUMB_HOLE_RINGS
    dorsal, palmar = RADIAL_COLUMN - 1, RADIAL_COLUMN + 1
    up = [palm[r, dorsal] for r in range(last, first - 1, -1)]
    down = [palm[r, palmar] for r in range(first, last + 1)]
    return np.array([palm[last, RADIAL_COLUMN], *up, palm[first, RADIAL_COLUMN], *down])


def _finger_opening(outer: np.ndarray, webs: np.ndarray, slot: int) -> np.ndarray:
    """The eight vertices around the base of the finger in ``slot``, in the palm's sense."""
    radial = outer[RADIAL_COLUMN] if slot == len(SLOTS) - 1 else webs[slot]
    ulnar = outer[ULNAR_COLUMN] if slot == 0 else webs[slot - 1]
    dorsal = [outer[2 * slot + i] for i in range(3)]
    palmar = [outer[16 - 2 * slot + i] for i in range(3)]
    return np.array([*dorsal, radial, *palmar, ulnar])


def _palm_quad(palm: np.ndarray, ring: int, column: int) -> tuple[int, int, int, int]:
    """Corners of the quad between ``ring`` and the next ring, in outward sense."""
    after = (column + 1) % PALM_COLUMNS
    a, b = palm[ring, column], palm[ring, after]
    c, d = palm[ring + 1, after], palm[ring + 1, column]
    return int(a), int(b), int(c), int(d)


def _palm_faces(
    palm: np.ndarray, extra: np.ndarray, extra_quads: np.ndarray
) -> list[tuple[int, int, int]]:
    """Triangles of the palm: its quads but those of the thumb's hole."""
    centre = {tuple(q): int(v) for q, v in zip(extra_quads.tolist(), extra, strict=True)}
    first, last = THUMB_HOLE_RINGS
    faces: list[tuple[int, int, int]] = []
    for ring in range(PALM_RINGS - 1):
        for column in range(PALM_COLUMNS):
            if first <= ring < last and column in (RADIAL_COLUMN - 1, RADIAL_COLUMN):
                continue
            quad = _palm_quad(palm, ring, column)
            a, b, c, d = quad
            if quad in centre:
                v = centre[quad]
                faces += [(a, b, v), (b, c, v), (c, d, v), (d, a, v)]
            else:
                faces += _split(a, b, c, d, flip=(ring + column) % 2 == 1)
    return faces


def _split(a: int, b: int, c: int, d: int, *, flip: bool) -> list[tuple[int, int, int]]:
    """A quad as two triangles."""
    return [(a, b, c), (a, c, d)] if flip else [(a, b, d), (b, c, d)]


def _strip(lower: np.ndarray, upper: np.ndarray) -> list[tuple[int, int, int]]:
    """Triangles between two closed rings of equal length, diagonals alternating."""
    faces: list[tuple[int, int, int]] = []
    below, above = np.roll(lower, -1), np.roll(upper, -1)
    for i, (a, b, c, d) in enumerate(zip(lower, below, above, upper, strict=True)):
        faces += _split(int(a), int(b), int(c), int(d), flip=i % 2 == 1)
    return faces


def _fan_between(lower: np.ndarray, upper: np.ndarray) -> list[tuple[int, int, int]]:
    """Triangles between two closed rings of different length, both starting at the same angle."""
    faces: list[tuple[int, int, int]] = []
    i = j = 0
    while i < len(lower) or j < len(upper):
        a, d = int(lower[i % len(lower)]), int(upper[j % len(upper)])
        if j == len(upper) or (i < len(lower) and (i + 1) / len(lower) <= (j + 1) / len(upper)):
            i += 1
            faces.append((a, int(lower[i % len(lower)]), d))
        else:
            j += 1
            faces.append((a, int(upper[j % len(upper)]), d))
    return faces
