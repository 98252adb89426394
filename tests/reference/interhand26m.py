"""InterHand2.6M's scores of one test set, by loops; millimetres.

Joints in InterHand's own order: right 0-20, left 21-41, wrists 20 and 41.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RIGHT_WRIST, LEFT_WRIST, INTERACTING = 20, 41, 2


def score(
    samples: Sequence[Mapping[str, Any]], *, strict: bool = False
) -> dict[str, float | int | None]:
    """Return the scores under the names of ``InterhandScores``; None where nothing was scored.

    Each sample holds ``joints_mm`` and ``target_mm`` [42, 3] in the camera frame, ``joint_valid``
    [42], ``hand_type`` (0 right, 1 left, 2 interacting), ``hand_type_valid``, ``pred_hand_type``
    [2] (scores of right and left) and ``pred_left_from_right_mm`` [3]. A hand without a valid wrist
    has no valid joint. ``strict``: a score of exactly 0.5 says that the hand is there.
    """
    everything: list[list[float]] = [[] for _ in range(42)]
    single: list[list[float]] = [[] for _ in range(42)]
    interacting: list[list[float]] = [[] for _ in range(42)]
    between, correct = [], []
    num_interacting = 0
    for sample in samples:
        joints = np.asarray(sample["joints_mm"], np.float64)
        target = np.asarray(sample["target_mm"], np.float64)
        valid = [bool(value) for value in sample["joint_valid"]]
        both = int(sample["hand_type"]) == INTERACTING
        num_interacting += both
        for joint in range(42):
            wrist = RIGHT_WRIST if joint <= RIGHT_WRIST else LEFT_WRIST
            if not (valid[joint] and valid[wrist]):
                continue
            gap = (joints[joint] - joints[wrist]) - (target[joint] - target[wrist])
            error = float(np.sqrt((gap**2).sum()))
            everything[joint].append(error)
            (interacting if both else single)[joint].append(error)
        if both and valid[RIGHT_WRIST] and valid[LEFT_WRIST]:
            gap = np.asarray(sample["pred_left_from_right_mm"], np.float64)
            gap = gap - (target[LEFT_WRIST] - target[RIGHT_WRIST])
            between.append(float(np.sqrt((gap**2).sum())))
        if bool(sample["hand_type_valid"]):
            said = _hand_type(*[float(value) for value in sample["pred_hand_type"]], strict=strict)
            correct.append(said == int(sample["hand_type"]))
    return {
        "num_samples": len(samples),
        "num_single": len(samples) - num_interacting,
        "num_interacting": num_interacting,
        "mpjpe_mm": _mean_over_joints(everything),
        "mpjpe_single_mm": _mean_over_joints(single),
        "mpjpe_interacting_mm": _mean_over_joints(interacting),
        "mrrpe_mm": sum(between) / len(between) if between else None,
        "num_mrrpe": len(between),
        "handedness_accuracy": sum(correct) / len(correct) if correct else None,
        "num_handedness": len(correct),
        "num_joints_unseen": sum(len(errors) == 0 for errors in everything),
    }


def _hand_type(right: float, left: float, *, strict: bool) -> int | None:
    """Return the hand type that the two scores say, None where they say none."""
    right_yes = right >= 0.5 if strict else right > 0.5
    left_yes = left >= 0.5 if strict else left > 0.5
    if right_yes and left_yes:
        return 2
    if right_yes and left < 0.5:
        return 0
    if left_yes and right < 0.5:
        return 1
    return None


def _mean_over_joints(errors: list[list[float]]) -> float | None:
    means = [sum(seen) / len(seen) for seen in errors if seen]
    return sum(means) / len(means) if means else None
