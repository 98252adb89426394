import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tests.reference import dexycb as reference
from tests.reference import points, procrustes
from tests.train.evaluate.metrics.scenes import NUM_HANDS, Scene, stream, to_tensors
from train.evaluate.metrics.dexycb import DexycbAccumulator, DexycbScores, official


def _scene() -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true joints, millimetres."""
    return 1000 * Scene().pred_joints, 1000 * Scene().joints


def _scores(pred: np.ndarray, truth: np.ndarray, *, strict: bool = False) -> DexycbScores:
    accumulator = DexycbAccumulator(strict=strict)
    stream(accumulator.update, *to_tensors(pred, truth))
    return accumulator.summary()


@pytest.mark.parametrize("strict", [False, True], ids=["official", "strict"])
def test_scores_match_the_loops(strict: bool) -> None:  # noqa: FBT001
    pred, truth = _scene()
    actual = official(_scores(pred, truth, strict=strict))
    expected = reference.score(truth, pred, strict=strict)
    assert list(actual) == list(expected) == ["absolute", "root-relative", "procrustes"]
    for name, (mean, auc) in expected.items():
        assert actual[name]["mpjpe"] == pytest.approx(mean, rel=1e-9), name
        assert actual[name]["auc"] == pytest.approx(auc, abs=1e-12), name


def test_reflected_hands_are_counted_and_have_a_proper_number() -> None:
    pred, truth = _scene()
    scores, strict = _scores(pred, truth), _scores(pred, truth, strict=True)
    pairs = zip(truth, pred, strict=True)
    assert scores.num_reflected == sum(procrustes.is_reflected(*pair) for pair in pairs) >= 1
    assert strict.num_reflected == scores.num_reflected
    assert strict.pa_mpjpe_mm == strict.proper_pa_mpjpe_mm == scores.proper_pa_mpjpe_mm
    assert scores.proper_pa_mpjpe_mm > scores.pa_mpjpe_mm + 1


def test_errors_on_a_threshold_count_as_hits() -> None:
    limits = np.linspace(0, 50, 100)
    errors = limits[np.random.default_rng(5).integers(0, 100, (NUM_HANDS, 21))]
    errors[:, 0] = 0
    pred = np.zeros((NUM_HANDS, 21, 3))
    pred[:, :, 1] = errors
    scores = _scores(pred, np.zeros_like(pred))
    mean, auc = points.mean_and_auc(list(errors), limits)
    assert scores.auc == pytest.approx(auc, abs=1e-15)
    assert scores.rr_auc == pytest.approx(auc, abs=1e-15)
    assert scores.mpjpe_mm == pytest.approx(mean, rel=1e-12)
    above = _scores(np.nextafter(pred, np.inf), np.zeros_like(pred))
    assert above.auc < scores.auc - 0.005


def test_a_zero_prediction_lands_on_the_mean() -> None:
    _, truth = _scene()
    to_mean = truth - truth.mean(1, keepdims=True)
    expected = np.sqrt((to_mean**2).sum(-1)).mean()
    for strict in (False, True):
        scores = _scores(np.zeros_like(truth), truth, strict=strict)
        assert scores.pa_mpjpe_mm == pytest.approx(expected, rel=1e-9)
        assert (scores.auc, scores.num_reflected) == (0, 0)


def test_streaming_equals_all_at_once_and_float32_is_scored_in_float64() -> None:
    tensors = [x.float() for x in to_tensors(*_scene())]
    batches, once = DexycbAccumulator(), DexycbAccumulator()
    stream(batches.update, *tensors)
    once.update(*(x.double() for x in tensors))
    assert asdict(batches.summary()) == pytest.approx(asdict(once.summary()), rel=1e-13)
    assert once.summary().num_samples == NUM_HANDS


def test_bad_input_is_an_error() -> None:
    pred, truth = to_tensors(*_scene())
    with pytest.raises(ValueError, match=r"^target_mm must have shape \(6, 21, 3\), got \(6, 16"):
        DexycbAccumulator().update(pred, truth[:, :16])
    with pytest.raises(ValueError, match=r"^joints_mm must have shape \(6, 21, 3\), got \(6, 21\)"):
        DexycbAccumulator().update(pred[..., 0], truth)
    pred[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"^joints_mm: 1 of 6 scored hands are not finite"):
        DexycbAccumulator().update(pred, truth)
    with pytest.raises(ValueError, match=r"^target_mm: 1 of 6 scored hands are not finite"):
        DexycbAccumulator().update(truth, pred)
    accumulator = DexycbAccumulator()
    accumulator.update(torch.zeros(0, 21, 3), torch.zeros(0, 21, 3))
    with pytest.raises(ValueError, match="no sample was scored"):
        accumulator.summary()
