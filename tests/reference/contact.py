"""Contact of hand vertices as counts, by loops."""

import numpy as np


def score(
    probability: np.ndarray, contact: np.ndarray, valid: np.ndarray, threshold: float = 0.5
) -> dict[str, float | int | None]:
    """Return the scores under the names of ``ContactScores``, and the three counts.

    ``probability`` [n, v] in [0, 1] or bool, ``contact`` and ``valid`` [n, v] bool. Contact is
    guessed where the probability is over ``threshold``; vertices that are not valid play no part.
    """
    hits = false_alarms = misses = 0
    each = []
    for hand in range(len(probability)):
        tp, fp, fn = counts(probability[hand], contact[hand], valid[hand], threshold)
        hits, false_alarms, misses = hits + tp, false_alarms + fp, misses + fn
        if tp + fp + fn > 0:
            each.append(2 * tp / (2 * tp + fp + fn))
    guessed, true = hits + false_alarms, hits + misses
    return {
        "true_positives": hits,
        "false_positives": false_alarms,
        "false_negatives": misses,
        "num_hands": len(probability),
        "num_contacts": true,
        "precision": hits / guessed if guessed else 0.0,
        "recall": hits / true if true else 0.0,
        "f1": 2 * hits / (guessed + true) if guessed + true else 0.0,
        "per_hand_f1": sum(each) / len(each) if each else None,
    }


def counts(
    probability: np.ndarray, contact: np.ndarray, valid: np.ndarray, threshold: float = 0.5
) -> tuple[int, int, int]:
    """Return (true positives, false positives, false negatives) of the vertices [v] of one hand."""
    tp = fp = fn = 0
    for guess, true, use in zip(probability, contact, valid, strict=True):
        if not use:
            continue
        said = float(guess) > threshold
        tp += bool(said and true)
        fp += bool(said and not true)
        fn += bool(not said and true)
    return tp, fp, fn


def from_distance(distance_mm: np.ndarray, threshold_mm: float) -> np.ndarray:
    """Return where the distance [*] is no more than the threshold, both in mm."""
    flat = [float(value) <= threshold_mm for value in np.ravel(distance_mm)]
    return np.array(flat, bool).reshape(np.shape(distance_mm))
