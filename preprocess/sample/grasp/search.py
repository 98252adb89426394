"""Grasp search: candidate approaches to an object, evaluated with the mean hand.

Frames as in ``solid`` and ``hand_curl``. Metres and radians.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from model.hand import NUM_BETAS
from preprocess.sample.hand.curl import THUMBS, finger_owner, hand_points
from preprocess.sample.hand.mesh import stand_in_model
from preprocess.sample.objects.solid import Solid, solid_of
from preprocess.sample.objects.ycb import OBJECTS

TOUCH_M: Final = 0.0002
"""Distance from the surface at which a finger stops, metres."""
TABLE_GAP_M: Final = 0.003
"""Minimum distance of the hand's vertices from the table, metres."""
_RUN_UP_M: Final = 0.16
"""Distance from the target at which the hand starts, metres."""
_LEVELS: Final = np.linspace(0.0, 1.0, 21)
_CANDIDATES: Final = 240
_KEPT: Final = 8
_EVERY: Final = 3
"""Vertex stride: the search uses every third vertex."""
_FOREARM_M: Final = np.linspace(0.03, 0.24, 8)
_FOREARM_RADIUS_M: Final = 0.04


def advance(
    distance: Callable[[np.ndarray], np.ndarray], points: np.ndarray, way: np.ndarray
) -> float:
    """Return how far points go along ``way`` until one is 1 mm from the object or at the table."""
    travel = 0.0
    for _ in range(24):
        moved = points + travel * way
        clearance = min(
            float(distance(moved).min()) - 0.001, float(moved[:, 2].min()) - TABLE_GAP_M
        )
        # No point is nearer than `clearance`, so the step cannot go through the surface.
        if clearance < 5e-5 or travel > _RUN_UP_M + 0.06:
            break
        travel += clearance
    return travel


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grip:
    """A candidate grasp: an approach to a standing object.

    ``R_stand_from_hand`` [3, 3]; ``start`` [3] where the wrist starts; ``approach`` [3] unit vector
    of its motion; ``back`` its retreat from the point of collision, metres; ``level`` the closing
    of the fingers on the way; ``thumb`` the thumb's position; ``score`` grows with fingers that
    touch and with opposing forces.
    """

    R_stand_from_hand: np.ndarray
    start: np.ndarray
    approach: np.ndarray
    back: float
    level: float
    thumb: int
    score: float


@lru_cache(maxsize=2 * len(OBJECTS))
def find_grips(name: str, side: str) -> tuple[Grip, ...]:
    """Return the best grasps of an object, best first; found with the mean hand."""
    solid = solid_of(name)
    rng = np.random.default_rng([OBJECTS.index(name), int(side == "left")])
    hands = _closing_hands(side)
    found = []
    for _ in range(_CANDIDATES):
        grip = _judged(_draw_grip(rng, solid, side), solid, side, hands)
        if grip is not None:
            found.append(grip)
    found.sort(key=lambda grip: -grip.score)
    return tuple(found[:_KEPT])


@lru_cache(maxsize=2)
def _closing_hands(side: str) -> np.ndarray:
    """Some vertices of the mean hand, [thumb, level, n, 3] in the hand frame."""
    level = np.broadcast_to(_LEVELS[:, None, None], (len(_LEVELS), 5, 3))
    model, beta = stand_in_model(side), np.zeros(NUM_BETAS)
    found = [hand_points(model, beta, side, level, thumb) for thumb in range(len(THUMBS))]
    return np.stack(found)[:, :, ::_EVERY]


def _draw_grip(rng: np.random.Generator, solid: Solid, side: str) -> Grip:
    """Sample an approach: from the side with the thumb up, or from above."""
    low, high = solid.vertices.min(0), solid.vertices.max(0)
    turn = rng.uniform(0.0, 2 * np.pi)
    ahead = np.array([np.cos(turn), np.sin(turn), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    if rng.random() < np.clip((high[2] - 0.05) / 0.08, 0.08, 0.75):
        # Palm along `ahead`, thumb up, leaning a little.
        lean = Rotation.from_rotvec(ahead * rng.normal(0.0, 0.25))
        approach, thumb_up = ahead, lean.apply(up)
    else:
        # `ahead` is where the fingers point before the hand is tipped down by `tip`.
        tip = rng.uniform(0.15, 1.25)
        approach = -up * np.cos(tip) - ahead * np.sin(tip)
        thumb_up = np.cross(up, ahead) * (-1.0 if side == "left" else 1.0)
    rotation = np.stack([np.cross(-approach, thumb_up), -approach, thumb_up], axis=1)
    target = (low + high) / 2 + rng.uniform(-0.5, 0.5, 3) * rng.random() * (high - low)
    sign = 1.0 if side == "left" else -1.0
    held = np.array([sign * rng.uniform(0.070, 0.125), 0.0, rng.uniform(-0.005, 0.025)])
    way = approach if rng.random() < 0.5 else _towards(approach, -up, 0.6)
    return Grip(
        R_stand_from_hand=rotation,
        start=target - rotation @ held - way * _RUN_UP_M,
        approach=way,
        back=float(rng.choice([0.0, 0.004, 0.010, 0.018])),
        level=float(_LEVELS[rng.integers(0, 11)]),
        thumb=int(rng.integers(len(THUMBS))),
        score=0.0,
    )


def _towards(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Return a unit vector between two others."""
    mixed = (1.0 - share) * a + share * b
    return np.asarray(mixed / np.linalg.norm(mixed))


def _judged(grip: Grip, solid: Solid, side: str, hands: np.ndarray) -> Grip | None:
    """Return the grip with its score; None if it holds nothing."""
    along = grip.R_stand_from_hand[:, 0] * (-1.0 if side == "left" else 1.0)
    if (grip.start + _FOREARM_M[:, None] * along)[:, 2].min() < 0.0:
        return None
    first = int(np.searchsorted(_LEVELS, grip.level - 1e-9))
    closing = hands[grip.thumb, first:] @ grip.R_stand_from_hand.T
    travel = advance(solid.roughly, closing[0] + grip.start, grip.approach)
    if travel == 0.0:
        return None
    wrist = grip.start + max(travel - grip.back, 0.0) * grip.approach
    arm = wrist + _FOREARM_M[:, None] * along
    if arm[:, 2].min() < _FOREARM_RADIUS_M + 0.01 or solid.roughly(arm).min() < 0.03:
        return None
    placed = closing + wrist
    gap = solid.roughly(placed)
    blocked = np.minimum(gap, placed[..., 2] - TABLE_GAP_M)
    owner = finger_owner()[::_EVERY]
    touching, normals, ends = np.zeros(5, dtype=bool), np.zeros((5, 3)), []
    for slot in range(5):
        mine = owner == slot
        free = blocked[:, mine].min(1) > TOUCH_M
        level = len(free) - 1 if free.all() else max(int(np.argmin(free)) - 1, 0)
        last, points = gap[level][mine], placed[level][mine]
        ends.append(points)
        touching[slot] = last.min() < 0.004
        normals[slot] = _normal(solid, points[last.argmin()])
    if not touching[0] or touching[1:].sum() < 1:
        return None
    oppose = -float(normals[0] @ normals[1:][touching[1:]].mean(0))
    nearest, _ = KDTree(np.concatenate(ends[1:])).query(ends[0])
    crossed = float(np.min(nearest)) < 0.004
    palm = gap[0][owner < 0].min()
    middle = (solid.vertices.min(0) + solid.vertices.max(0)) / 2
    held = np.concatenate(ends).mean(0)
    score = (
        float(touching[1:].sum())
        + 2.5 * min(oppose, 0.8)
        - 3.0 * crossed
        - 8.0 * float(np.linalg.norm(held - middle))
        + 0.4 * float(palm < 0.012)
    )
    return replace(grip, score=score)


def _normal(solid: Solid, point: np.ndarray) -> np.ndarray:
    """Unit gradient of the grid's distance."""
    around = point + 0.002 * np.concatenate([np.eye(3), -np.eye(3)])
    value = solid.roughly(around)
    slope = value[:3] - value[3:]
    return np.asarray(slope / max(float(np.linalg.norm(slope)), 1e-9))
