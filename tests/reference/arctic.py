"""ARCTIC's scores of one sequence and view, by loops over frames, vertices and points.

Metres and radians in, camera frame; the unit out is in each docstring. ``f`` frames, ``n`` hand
vertices, ``v`` object vertices. NaN: not scored. Hand arrays come in pairs (right, left), and the
validities are the raw ones in 0..1: the product with ``is_valid`` is formed here.
"""

from collections.abc import Sequence

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
CONTACT_M = 0.003
WINDOW = 15


def nearest(hand: np.ndarray, thing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance [f, n] in m, at most 0.1, and index [f, n] of the nearest of ``thing``.

    ``hand`` [f, n, 3] and ``thing`` [f, v, 3] in m. Swap them for the object's vertices.
    """
    hand, thing = np.asarray(hand, np.float64), np.asarray(thing, np.float64)
    distance = np.zeros(hand.shape[:2])
    index = np.zeros(hand.shape[:2], np.int64)
    for f in range(len(hand)):
        for i in range(hand.shape[1]):
            away = np.sqrt(((thing[f] - hand[f, i]) ** 2).sum(-1))
            index[f, i] = int(np.argmin(away))
            distance[f, i] = min(max(float(away.min()), 0.0), 0.1)
    return distance, index


def object_root(vertices: np.ndarray, part_ids: np.ndarray) -> np.ndarray:
    """Return the mean [f, 3] of the vertices [f, v, 3] of part 2."""
    vertices = np.asarray(vertices, np.float64)
    return np.array([frame[np.asarray(part_ids) == 2].mean(0) for frame in vertices])


def aae(
    truth_rad: np.ndarray, guess_rad: np.ndarray, is_valid: np.ndarray, *, strict: bool = False
) -> np.ndarray:
    """Return the articulation error [f] in degrees; ``strict``: the short way round."""
    errors = []
    for truth, guess, valid in zip(truth_rad, guess_rad, is_valid, strict=True):
        error = abs(float(guess) / np.pi * 180 - float(truth) / np.pi * 180)
        if strict:
            error = min(error % 360, 360 - error % 360)
        errors.append(error if _truncated(float(valid)) else np.nan)
    return np.array(errors)


def mpjpe_ra(
    truth_joints: Pair,
    guess_joints: Pair,
    hand_valid: Pair,
    is_valid: np.ndarray,
) -> np.ndarray:
    """Return the root-relative joint error [f] in mm, mean over the valid hands; [f, 21, 3]."""
    both = []
    for truth, guess, valid in zip(truth_joints, guess_joints, hand_valid, strict=True):
        errors = []
        for f in range(len(truth)):
            away = _norms((guess[f] - guess[f, 0]) - (truth[f] - truth[f, 0]))
            use = _truncated(float(valid[f]) * float(is_valid[f]))
            errors.append(1000 * sum(away) / len(away) if use else np.nan)
        both.append(errors)
    return _mean_of_hands(both)


def mrrpe_rl(
    truth_joints: Pair,
    guess_joints: Pair,
    hand_valid: Pair,
    is_valid: np.ndarray,
) -> np.ndarray:
    """Return the error [f] in mm of the left wrist as seen from the right one; [f, 21, 3]."""
    errors = []
    for f in range(len(is_valid)):
        truth = truth_joints[1][f, 0] - truth_joints[0][f, 0]
        guess = guess_joints[1][f, 0] - guess_joints[0][f, 0]
        right = float(hand_valid[0][f]) * float(is_valid[f])
        left = float(hand_valid[1][f]) * float(is_valid[f])
        use = _truncated(left * right)
        errors.append(1000 * _norms((guess - truth)[None])[0] if use else np.nan)
    return np.array(errors)


def mrrpe_ro(
    truth_right: np.ndarray,
    guess_right: np.ndarray,
    truth_object: np.ndarray,
    guess_object: np.ndarray,
    part_ids: np.ndarray,
    right_valid: np.ndarray,
    is_valid: np.ndarray,
) -> np.ndarray:
    """Return the error [f] in mm of the object's root as seen from the right wrist.

    Joints [f, 21, 3], object vertices [f, v, 3]. The validity is that of the right hand times
    ``is_valid`` once more.
    """
    truth = object_root(truth_object, part_ids) - truth_right[:, 0]
    guess = object_root(guess_object, part_ids) - guess_right[:, 0]
    errors = []
    for f in range(len(is_valid)):
        use = _truncated(float(right_valid[f]) * float(is_valid[f]) * float(is_valid[f]))
        errors.append(1000 * _norms((guess[f] - truth[f])[None])[0] if use else np.nan)
    return np.array(errors)


def success_rate(
    truth_object: np.ndarray,
    guess_object: np.ndarray,
    part_ids: np.ndarray,
    diameter_m: float,
    is_valid: np.ndarray,
) -> np.ndarray:
    """Return the share [f] in % of object vertices nearer than 5% of the diameter; [f, v, 3]."""
    truth_root = object_root(truth_object, part_ids)
    guess_root = object_root(guess_object, part_ids)
    shares = []
    for f in range(len(is_valid)):
        away = _norms((guess_object[f] - guess_root[f]) - (truth_object[f] - truth_root[f]))
        near = sum(distance < 0.05 * diameter_m for distance in away)
        shares.append(100 * near / len(away) if is_valid[f] != 0 else np.nan)
    return np.array(shares)


def cdev(
    truth_hands: Pair,
    truth_object: np.ndarray,
    guess_hands: Pair,
    guess_object: np.ndarray,
    hand_valid: Pair,
    is_valid: np.ndarray,
    *,
    strict: bool = False,
) -> np.ndarray:
    """Return the distance [f] in mm of the guessed points that touch in the truth (<= 3 mm).

    Hand vertices [f, n, 3], object vertices [f, v, 3]. A fractional validity counts as invalid;
    ``strict``: as valid.
    """
    both = []
    for truth, guess, valid in zip(truth_hands, guess_hands, hand_valid, strict=True):
        distance, index = nearest(truth, truth_object)
        errors = []
        for f in range(len(truth)):
            weight = float(valid[f]) * float(is_valid[f])
            use = weight > 0 if strict else 1 - weight == 0
            touching = [i for i in range(truth.shape[1]) if distance[f, i] <= CONTACT_M]
            gaps = [_norms((guess_object[f, index[f, i]] - guess[f, i])[None])[0] for i in touching]
            errors.append(1000 * sum(gaps) / len(gaps) if use and gaps else np.nan)
        both.append(errors)
    return _mean_of_hands(both)


def contact_windows(
    truth_hand: np.ndarray, truth_object: np.ndarray, *, strict: bool = False
) -> list[tuple[int, int, int, int]]:
    """Return (hand vertex, first frame, last frame, object vertex) of each stable contact.

    By vertex, then time. Hand [f, n, 3], object [f, v, 3]. A run of contact (< 3 mm) that is open
    at the last frame is dropped, and the spread of the touched vertices is the mean of their
    distance matrix without the upper triangle of its leading 15 x 15 block. ``strict``: open runs
    stay, and the spread is the mean of the strictly lower triangle.
    """
    distance, index = nearest(truth_hand, truth_object)
    num_frames = len(distance)
    windows = []
    for i in range(distance.shape[1]):
        contact = [bool(distance[f, i] < CONTACT_M) for f in range(num_frames)]
        if sum(contact) < WINDOW:
            continue
        start = None
        for f in range(num_frames + 1):
            touching = f < num_frames and contact[f]
            if touching and start is None:
                start = f
            if touching or start is None:
                continue
            first, last, start = start, f - 1, None
            if f == num_frames and not strict:
                continue
            if last - first + 1 < WINDOW:
                continue
            touched = [int(j) for j in index[first : last + 1, i]]
            if _spread(np.asarray(truth_object[0], np.float64)[touched], strict=strict) > CONTACT_M:
                continue
            most = max(touched.count(j) for j in touched)
            windows.append((i, first, last, min(j for j in touched if touched.count(j) == most)))
    return windows


def mdev(
    truth_hands: Pair,
    truth_object: np.ndarray,
    guess_hands: Pair,
    guess_object: np.ndarray,
    hand_valid: Pair,
    is_valid: np.ndarray,
    *,
    strict: bool = False,
) -> np.ndarray:
    """Return for each true contact window the mean slip between frames in the guess, mm [w].

    The right hand's windows, then the left's; empty if there is none.
    """
    values = []
    for truth, guess, valid in zip(truth_hands, guess_hands, hand_valid, strict=True):
        use = [float(a) * float(b) for a, b in zip(valid, is_valid, strict=True)]
        for i, first, last, j in contact_windows(truth, truth_object, strict=strict):
            slips = []
            for f in range(first + 1, last + 1):
                if use[f] * use[f - 1] != 0:
                    hand = guess[f, i] - guess[f - 1, i]
                    thing = guess_object[f, j] - guess_object[f - 1, j]
                    slips.append(_norms((hand - thing)[None])[0])
            values.append(1000 * sum(slips) / len(slips) if slips else np.nan)
    return np.array(values, np.float64)


def acc_pose(
    truth_joints: Pair,
    truth_hands: Pair,
    truth_object: np.ndarray,
    guess_joints: Pair,
    guess_hands: Pair,
    guess_object: np.ndarray,
    part_ids: np.ndarray,
    hand_valid: Pair,
    is_valid: np.ndarray,
    *,
    strict: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the acceleration errors acc/h [f] and acc/o [f] in m/s^2 of root-relative vertices.

    Joints [f, 21, 3], hand vertices [f, n, 3], object vertices [f, v, 3].
    """
    both = []
    for hand in range(2):
        truth = truth_hands[hand] - truth_joints[hand][:, :1]
        guess = guess_hands[hand] - guess_joints[hand][:, :1]
        weight = np.asarray(hand_valid[hand], np.float64) * np.asarray(is_valid, np.float64)
        both.append(_acceleration_error(truth, guess, weight, strict=strict))
    truth = truth_object - object_root(truth_object, part_ids)[:, None]
    guess = guess_object - object_root(guess_object, part_ids)[:, None]
    acc_o = _acceleration_error(truth, guess, np.asarray(is_valid, np.float64), strict=strict)
    return _mean_of_hands(both), np.array(acc_o)


def avg_field(
    truth_hand_to_object: Pair,
    truth_object_to_hand: Pair,
    guess_hand_to_object: Pair,
    guess_object_to_hand: Pair,
    is_valid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the errors of the distances avg/ho [f] and avg/oh [f] in mm.

    Hand to object [f, n] and object to hand [f, v], (right, left), metres. The validity of the
    hands plays no part.
    """
    results = []
    for truths, guesses in (
        (truth_hand_to_object, guess_hand_to_object),
        (truth_object_to_hand, guess_object_to_hand),
    ):
        errors = []
        for f in range(len(is_valid)):
            means = []
            for truth, guess in zip(truths, guesses, strict=True):
                away = [abs(float(a) - float(b)) for a, b in zip(truth[f], guess[f], strict=True)]
                means.append(sum(away) / len(away))
            errors.append(1000 * sum(means) / 2 if is_valid[f] != 0 else np.nan)
        results.append(np.array(errors))
    return results[0], results[1]


def acc_field(
    truth_hand_to_object: Pair,
    truth_object_to_hand: Pair,
    guess_hand_to_object: Pair,
    guess_object_to_hand: Pair,
    hand_valid: Pair,
    is_valid: np.ndarray,
    *,
    strict: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the acceleration errors of the distances acc/ho [f] and acc/oh [f] in m/s^2.

    Hand to object [f, n] with the validity of the hand, object to hand [f, v] with ``is_valid``.
    """
    whole = np.asarray(is_valid, np.float64)
    ho, oh = [], []
    for hand in range(2):
        weight = np.asarray(hand_valid[hand], np.float64) * whole
        truth = np.asarray(truth_hand_to_object[hand])[:, :, None]
        guess = np.asarray(guess_hand_to_object[hand])[:, :, None]
        ho.append(_acceleration_error(truth, guess, weight, strict=strict))
        truth = np.asarray(truth_object_to_hand[hand])[:, :, None]
        guess = np.asarray(guess_object_to_hand[hand])[:, :, None]
        oh.append(_acceleration_error(truth, guess, whole, strict=strict))
    return _mean_of_hands(ho), _mean_of_hands(oh)


def _truncated(valid: float) -> bool:
    """Say if the whole part of ``1 - valid`` is 0."""
    return int(1 - valid) == 0


def _norms(rows: np.ndarray) -> list[float]:
    return [float(square) ** 0.5 for square in (np.asarray(rows, np.float64) ** 2).sum(-1)]


def _mean_of_hands(both: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the mean over the hands that have a value, NaN where none has."""
    means = []
    for pair in zip(*both, strict=True):
        seen = [value for value in pair if not np.isnan(value)]
        means.append(sum(seen) / len(seen) if seen else np.nan)
    return np.array(means)


def _spread(touched: np.ndarray, *, strict: bool) -> float:
    """Return the mean distance in m between the touched points [L, 3]."""
    kept = []
    for a in range(len(touched)):
        away = _norms(touched - touched[a])
        for b in range(len(touched)):
            keep = b < a if strict else not (a <= b < WINDOW)
            if keep:
                kept.append(away[b])
    return sum(kept) / len(kept)


def _acceleration_error(
    truth: np.ndarray, guess: np.ndarray, weight: np.ndarray, *, strict: bool
) -> list[float]:
    """Return the mean over points of the acceleration error, m/s^2; [f, k, d] and [f] to [f]."""
    h = 1 / 30
    errors = [float("nan")] * len(truth)
    for t in range(1, len(truth) - 1):
        around = [float(weight[t - 1]), float(weight[t]), float(weight[t + 1])]
        use = all(value > 0 for value in around) if strict else int(sum(around)) == 3
        if use:
            true = (truth[t - 1] - 2 * truth[t] + truth[t + 1]) / h**2
            mine = (guess[t - 1] - 2 * guess[t] + guess[t + 1]) / h**2
            away = _norms(mine - true)
            errors[t] = sum(away) / len(away)
    return errors
