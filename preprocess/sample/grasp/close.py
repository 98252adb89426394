"""Grasp closing: close a hand on an object until its fingers touch.

The hand moves along the approach of a grip with open fingers, stops at the object or the table,
then every finger closes until it touches: first all its joints, then the outer two, then the last.
Contact is measured by the signed distance to the object's surface at the hand's vertices.

Frames as in ``solid`` and ``hand_curl``. Metres and radians.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from model.mano.files import ManoArrays
from preprocess.sample.grasp.search import TABLE_GAP_M, TOUCH_M, Grip, advance, find_grips
from preprocess.sample.hand.curl import finger_owner, hand_points, shipped_or_fixed
from preprocess.sample.objects.solid import Solid, solid_of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grasp:
    """A hand closed on a standing object.

    ``R_stand_from_hand`` [3, 3]; ``wrist`` [3]; ``open_level`` and ``closed_level`` [5, 3] for
    ``finger_angles``; ``approach`` [3]; ``touching`` bool [5] fingers within 1 mm of the object;
    ``deepest_m`` the maximum penetration depth of the hand's vertices.
    """

    R_stand_from_hand: np.ndarray
    wrist: np.ndarray
    approach: np.ndarray
    open_level: np.ndarray
    closed_level: np.ndarray
    thumb: int
    touching: np.ndarray
    deepest_m: float


def close_hand(grip: Grip, solid: Solid, model: ManoArrays, beta: np.ndarray, side: str) -> Grasp:
    """Move a hand of any shape along the grip and close its fingers on the object."""
    opened = np.full((5, 3), grip.level)
    turn = grip.R_stand_from_hand.T

    def hands(level: np.ndarray) -> np.ndarray:
        return np.asarray(hand_points(model, beta, side, level, grip.thumb) @ turn)

    def gap(points: np.ndarray) -> np.ndarray:
        return np.asarray(np.minimum(solid.near(points), points[:, 2] - TABLE_GAP_M))

    travel = advance(solid.near, hands(opened[None])[0] + grip.start, grip.approach)
    wrist = grip.start + max(travel - grip.back, 0.0) * grip.approach
    level = opened.copy()
    owner = finger_owner()
    members = [owner == slot for slot in range(5)]
    for joint in range(3):

        def clearance(ends: np.ndarray, first: int = joint) -> np.ndarray:
            tried = np.repeat(level[None], len(ends), axis=0)
            tried[:, :, first:] = np.maximum(tried[:, :, first:], ends[:, :, None])
            points = hands(tried) + wrist
            values = gap(points.reshape(-1, 3)).reshape(len(ends), -1)
            return np.stack([values[:, mine].min(1) for mine in members], axis=1)

        reached = _farthest(clearance, level[:, joint].copy(), np.ones(5), TOUCH_M)
        level[:, joint:] = np.maximum(level[:, joint:], reached[:, None])
    closed = hands(level[None])[0] + wrist
    far = solid.distance(closed)
    touching = np.array([far[mine].min() < 0.001 for mine in members])
    if touching[1:].any() and not touching[1:].all():
        # Fingers that touch nothing stay beside their neighbours instead of making a fist.
        level[1:][~touching[1:]] = np.minimum(
            level[1:][~touching[1:]], level[1:][touching[1:]].mean(0)
        )
        far = solid.distance(hands(level[None])[0] + wrist)
    return Grasp(
        R_stand_from_hand=grip.R_stand_from_hand,
        wrist=wrist,
        approach=grip.approach,
        open_level=opened,
        closed_level=level,
        thumb=grip.thumb,
        touching=touching,
        deepest_m=float(max(-far.min(), 0.0)),
    )


def _farthest(
    clearance: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, least: float
) -> np.ndarray:
    """How far k things may go from ``low`` to ``high`` while their clearance is ``least`` or more.

    ``clearance`` maps n positions of all [n, k] to distances [n, k]. A sweep finds the first place
    that is too narrow; two finer ones the edge before it.
    """
    columns = np.arange(len(low))
    for count in (19, 13, 13):
        swept = low + np.linspace(0.0, 1.0, count)[:, None] * (high - low)
        free = clearance(swept) >= least
        blocked = np.where(free.all(0), count, np.argmin(free, axis=0))
        # What is blocked from the start stays there; what never is goes to the end.
        low = swept[np.clip(blocked - 1, 0, None), columns]
        high = np.where(blocked == 0, low, swept[np.minimum(blocked, count - 1), columns])
    return low


def grasp_object(
    rng: np.random.Generator, name: str, side: str, beta: np.ndarray, *, left_as_shipped: bool
) -> Grasp:
    """Return a hand of the given shape closed on an object: thumb and two fingers at least touch.

    Tries the grips found for the mean hand in random order, better ones likely first; if none works
    for this shape, also slightly farther from or nearer to the object. The best is kept.
    """
    solid, grips = solid_of(name), find_grips(name, side)
    model = shipped_or_fixed(side, as_shipped=left_as_shipped)
    score = np.array([grip.score for grip in grips]) + rng.gumbel(0.0, 0.5, len(grips))
    ordered = [grips[i] for i in np.argsort(-score)]
    best: Grasp | None = None
    for change in (0.0, 0.006, -0.006, 0.012):
        for grip in ordered:
            moved = replace(grip, back=grip.back + change)
            grasp = close_hand(moved, solid, model, beta, side)
            if best is None or _worth(grasp) > _worth(best):
                best = grasp
            if _worth(best) >= 3.0:
                return best
    assert best is not None, f"no way found to hold {name} with the {side} hand"
    return best


def _worth(grasp: Grasp) -> float:
    """Fingers that touch, at most one thumb and two others; none where it goes in too deep."""
    if grasp.deepest_m > 0.0015:
        return -1.0
    return float(1.5 * grasp.touching[0] + min(0.75 * grasp.touching[1:].sum(), 1.5))
