import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from tests.reference import interhand26m as reference
from train.evaluate.metrics.interhand26m import InterhandAccumulator, InterhandScores, official

SEEN_NOWHERE = 7
"""A joint that no sample has."""


def _samples(num: int = 9, seed: int = 0) -> dict[str, np.ndarray]:
    """Random samples of every hand type; some joints and wrists not valid, targets NaN there."""
    rng = np.random.default_rng(seed)
    target = rng.normal([0, 0, 600], 40, (num, 42, 3))
    valid = rng.random((num, 42)) > 0.2
    valid[:, [20, 41]] = True
    valid[:, SEEN_NOWHERE] = False
    hand_type = np.arange(num) % 3
    valid[hand_type == 0, 21:] = False  # a right hand only
    valid[hand_type == 1, :21] = False
    if num > 5:
        valid[2, 20] = False  # interacting without a right wrist
        valid[5, [20, 41]] = False  # and without any
    return {
        "joints_mm": target + rng.normal(0, 12, target.shape) + 30,
        "target_mm": np.where(valid[..., None], target, np.nan),
        "joint_valid": valid,
        "hand_type": hand_type,
        "hand_type_valid": rng.random(num) > 0.2,
        "pred_hand_type": rng.random((num, 2)),
        "pred_left_from_right_mm": rng.normal(0, 80, (num, 3)),
    }


def _rows(samples: dict[str, np.ndarray], rows: slice | list[int]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values[rows]) for name, values in samples.items()}


def _score(samples: dict[str, np.ndarray], *, strict: bool = False) -> InterhandScores:
    scores = InterhandAccumulator(strict=strict)
    scores.update(**_rows(samples, slice(None)))
    return scores.summary()


def _assert_matches(scores: InterhandScores, samples: dict[str, np.ndarray], **how: bool) -> None:
    num = len(samples["hand_type"])
    rows: list[dict[str, Any]] = [
        {name: value[i] for name, value in samples.items()} for i in range(num)
    ]
    expected = reference.score(rows, **how)
    assert set(expected) == set(asdict(scores))
    for name, value in expected.items():
        actual = getattr(scores, name)
        assert (actual is None) == (value is None), name
        assert value is None or actual == pytest.approx(value, rel=1e-12), name


def test_scores_match_the_loops() -> None:
    samples = _samples(num=12)
    scores = _score(samples)
    _assert_matches(scores, samples)
    assert scores.num_joints_unseen == 1
    assert scores.num_mrrpe == 2  # of four interacting, one lacks a wrist and one both
    assert scores.num_samples == 12
    assert scores.num_interacting == 4


def test_streaming_equals_the_whole() -> None:
    samples = _samples(num=10, seed=1)
    whole = _score(samples)
    scores = InterhandAccumulator()
    for rows in (slice(0, 1), slice(1, 1), slice(1, 6), slice(6, 10)):
        scores.update(**_rows(samples, rows))
    assert asdict(scores.summary()) == pytest.approx(asdict(whole), rel=1e-12)


def test_float32_inputs_are_scored_in_float64() -> None:
    samples = _samples()
    single = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in samples.items()}
    _assert_matches(_score(single), single)


def test_a_hand_without_its_wrist_has_no_joint() -> None:
    samples = _samples(num=3)
    samples["joint_valid"][:] = True
    samples["target_mm"] = np.nan_to_num(samples["target_mm"])
    samples["joint_valid"][:, 20] = False
    samples["target_mm"][:, :21] = np.nan
    samples["joints_mm"][:, :21] = 9e9
    scores = _score(samples)
    _assert_matches(scores, samples)
    assert scores.num_joints_unseen == 21
    assert scores.mpjpe_mm is not None
    assert scores.mpjpe_mm < 200
    assert scores.mrrpe_mm is None


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_test_set_of_one_kind_of_hands(kind: int) -> None:
    samples = {name: value[np.arange(9) % 3 == kind] for name, value in _samples(9).items()}
    scores = _score(samples)
    _assert_matches(scores, samples)
    assert (scores.mpjpe_single_mm is None) == (kind == 2)
    assert (scores.mpjpe_interacting_mm is None) == (kind != 2)
    if kind != 2:
        assert scores.mrrpe_mm is None
        assert scores.mpjpe_mm == scores.mpjpe_single_mm
        assert scores.num_joints_unseen == (22 if kind == 0 else 21)


def test_order_of_means_is_samples_first() -> None:
    """Joint 0 is off by 10 and 20 mm, joint 1 (one sample) by 40 mm: the mean is not 70 / 3."""
    samples = _samples(num=2)
    target = np.zeros((2, 42, 3))
    valid = np.zeros((2, 42), bool)
    valid[:, [0, 20]] = True
    valid[0, 1] = True
    joints = target.copy()
    joints[0, 0, 0], joints[1, 0, 0], joints[0, 1, 1] = 10, 20, 40
    samples |= {"target_mm": target, "joints_mm": joints, "joint_valid": valid}
    assert _score(samples).mpjpe_mm == pytest.approx((15 + 40 + 0) / 3)


def test_the_place_of_the_hands_does_not_change_the_joint_errors() -> None:
    samples = _samples()
    before = _score(samples)
    samples["joints_mm"][:, :21] += [100, -20, 7]
    samples["joints_mm"][:, 21:] -= 55
    after = _score(samples)
    assert after.mpjpe_mm == pytest.approx(before.mpjpe_mm)
    assert after.mrrpe_mm == before.mrrpe_mm


@pytest.mark.parametrize(
    ("right", "left", "by_default", "strict"),
    [
        (0.9, 0.1, 0, 0),
        (0.1, 0.9, 1, 1),
        (0.9, 0.8, 2, 2),
        (0.1, 0.2, None, None),
        (0.5, 0.1, None, 0),
        (0.1, 0.5, None, 1),
        (0.5, 0.5, None, 2),
        (0.5, 0.9, None, 2),
        (0.9, 0.5, None, 2),
    ],
)
def test_handedness_by_hand(
    right: float, left: float, by_default: int | None, strict: int | None
) -> None:
    samples = _samples(num=3)
    samples["hand_type_valid"][:] = True
    samples["pred_hand_type"][:] = right, left
    for is_strict, said in ((False, by_default), (True, strict)):
        for kind in range(3):
            samples["hand_type"][:] = kind
            scores = _score(samples, strict=is_strict)
            assert scores.handedness_accuracy == float(said == kind)
            _assert_matches(scores, samples, strict=is_strict)


def test_handedness_counts_valid_types_only() -> None:
    samples = _samples(num=4)
    samples["hand_type_valid"][:] = [True, False, True, False]
    samples["pred_hand_type"][:] = [[0.9, 0.1], [math.nan, 0.1], [0.9, 0.2], [0.1, 0.9]]
    scores = _score(samples)
    assert scores.num_handedness == 2
    assert scores.handedness_accuracy == 0.5
    samples["hand_type_valid"][:] = False
    assert _score(samples).handedness_accuracy is None


def test_official_names() -> None:
    scores = _score(_samples())
    assert official(scores) == {
        "Handedness accuracy": scores.handedness_accuracy,
        "MRRPE": scores.mrrpe_mm,
        "MPJPE for all hand sequences": scores.mpjpe_mm,
        "MPJPE for single hand sequences": scores.mpjpe_single_mm,
        "MPJPE for interacting hand sequences": scores.mpjpe_interacting_mm,
    }


def test_no_sample_is_a_clear_error() -> None:
    scores = InterhandAccumulator()
    with pytest.raises(ValueError, match=r"no InterHand2\.6M sample was scored"):
        scores.summary()
    scores.update(**_rows(_samples(), slice(0, 0)))
    with pytest.raises(ValueError, match=r"no InterHand2\.6M sample was scored"):
        scores.summary()


def test_samples_without_a_valid_joint_have_no_score() -> None:
    samples = _samples(num=3)
    samples["joint_valid"][:] = False
    scores = _score(samples)
    _assert_matches(scores, samples)
    assert scores.mpjpe_mm is scores.mpjpe_single_mm is scores.mrrpe_mm is None
    assert scores.num_joints_unseen == 42


@pytest.mark.parametrize(
    ("name", "row", "what"),
    [
        ("joints_mm", (3, 20), r"joints_mm: 1 of 6 scored samples"),
        ("target_mm", (3, 20), r"target_mm: 1 of 6 scored samples"),
        ("pred_left_from_right_mm", (2, 0), r"pred_left_from_right_mm: 1 of 2 scored samples"),
        ("pred_hand_type", (4, 1), r"pred_hand_type: 1 of 6 scored samples"),
    ],
)
def test_a_missing_prediction_is_an_error_and_not_a_better_score(
    name: str, row: tuple[int, int], what: str
) -> None:
    samples = _samples(num=6)
    samples["joint_valid"][:, [20, 41]] = True
    samples["target_mm"] = np.nan_to_num(samples["target_mm"])
    samples["hand_type_valid"][:] = True
    samples[name][row] = math.nan
    with pytest.raises(ValueError, match=f"^{what} are not finite"):
        _score(samples)


def test_an_unknown_hand_type_is_refused() -> None:
    samples = _samples(num=4)
    samples["hand_type"][[1, 2]] = [-1, 3]
    with pytest.raises(ValueError, match=r"^hand_type must be .*, got \[-1, 3\] in 2 of 4 samples"):
        _score(samples)


def test_a_single_row_is_not_broadcast() -> None:
    samples = _samples(num=4)
    samples["pred_hand_type"] = samples["pred_hand_type"][:1]
    # The second where annotations are checked.
    with pytest.raises((ValueError, TypeCheckError)):
        _score(samples)
