import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reference import hamer as reference
from tests.reference import procrustes
from tests.train.evaluate.metrics.scenes import NUM_HANDS, Scene, stream, to_tensors
from train.evaluate.metrics.hamer import PckAccumulator, PckScores, PoseAccumulator, PoseScores


def _pose(pred: np.ndarray, truth: np.ndarray, *, strict: bool = False) -> PoseScores:
    accumulator = PoseAccumulator(strict=strict)
    stream(accumulator.update, *to_tensors(pred, truth))
    return accumulator.summary()


def _joints_2d() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, truth (px), confidence and the side of the box (px) of 12 hands."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(80, 200, 12)
    truth = rng.uniform(0, 200, (12, 21, 2))
    pred = truth + rng.normal(0, 0.08, truth.shape) * scale[:, None, None]
    confidence = rng.choice([0, 0.3, 0.5, 0.51, 1], (12, 21))
    confidence[0] = 1
    truth[confidence <= 0.5] = math.nan
    return pred, truth, confidence, scale


def _pck(*tensors: Tensor, strict: bool = False) -> PckScores:
    accumulator = PckAccumulator(strict=strict)
    stream(accumulator.update, *tensors)
    return accumulator.summary()


@pytest.mark.parametrize("strict", [False, True], ids=["official", "strict"])
def test_pose_errors_match_the_loops(strict: bool) -> None:  # noqa: FBT001
    scene = Scene()
    scores = _pose(scene.pred_joints, scene.joints, strict=strict)
    mpjpe, pa_mpjpe = reference.pose(scene.joints, scene.pred_joints, strict=strict)
    assert scores.mpjpe_mm == pytest.approx(mpjpe, rel=1e-9)
    assert scores.pa_mpjpe_mm == pytest.approx(pa_mpjpe, rel=1e-9)
    assert (scores.num_samples, scores.num_degenerate) == (NUM_HANDS, 0)


def test_a_reflection_is_counted_and_forbidden() -> None:
    scene = Scene()
    scores = _pose(scene.pred_joints, scene.joints)
    pairs = list(zip(scene.joints, scene.pred_joints, strict=True))
    assert scores.num_reflected == sum(procrustes.is_reflected(*pair) for pair in pairs) >= 1
    reflecting = [procrustes.align_w_scale(*pair) for pair in pairs]
    errors = np.sqrt(((np.stack(reflecting) - scene.joints) ** 2).sum(-1)).mean(1)
    assert scores.reflecting_pa_mpjpe_mm == pytest.approx(1000 * errors.mean(), rel=1e-9)
    assert scores.pa_mpjpe_mm is not None
    assert scores.pa_mpjpe_mm > 1000 * errors.mean() + 1


@pytest.mark.parametrize("place", [0.0, 0.123])
def test_coincident_joints_make_the_mean_nan_unless_strict(place: float) -> None:
    scene = Scene()
    scene.pred_joints[3] = place
    scores = _pose(scene.pred_joints, scene.joints)
    assert scores.pa_mpjpe_mm is not None
    assert math.isnan(scores.pa_mpjpe_mm)
    assert math.isnan(reference.pose(scene.joints, scene.pred_joints)[1])
    assert scores.num_degenerate == 1
    strict = _pose(scene.pred_joints, scene.joints, strict=True)
    expected = reference.pose(scene.joints, scene.pred_joints, strict=True)
    assert (strict.mpjpe_mm, strict.pa_mpjpe_mm) == pytest.approx(expected, rel=1e-9)
    assert scores.mpjpe_mm == strict.mpjpe_mm
    assert (strict.num_samples, strict.num_degenerate) == (NUM_HANDS, 1)
    rest = [i for i in range(NUM_HANDS) if i != 3]
    other = _pose(scene.pred_joints[rest], scene.joints[rest])
    assert strict.reflecting_pa_mpjpe_mm == pytest.approx(other.reflecting_pa_mpjpe_mm, rel=1e-12)
    assert strict.num_reflected == scores.num_reflected == other.num_reflected


def test_strict_without_an_aligned_frame_says_none() -> None:
    truth = Scene().joints
    scores = _pose(np.zeros_like(truth), truth, strict=True)
    assert scores.pa_mpjpe_mm is scores.reflecting_pa_mpjpe_mm is None
    assert scores.num_degenerate == scores.num_samples == NUM_HANDS


@pytest.mark.parametrize("strict", [False, True], ids=["official", "strict"])
@pytest.mark.parametrize("all_seen", [False, True])
def test_pck_matches_the_loops(strict: bool, all_seen: bool) -> None:  # noqa: FBT001
    pred, truth, confidence, scale = _joints_2d()
    if not all_seen:
        confidence[:, 8] = 0.5
    scores = _pck(*to_tensors(pred, truth, confidence, scale), strict=strict)
    assert scores.thresholds == (0.05, 0.1, 0.15)
    for i, threshold in enumerate(scores.thresholds):
        args = (pred, truth, confidence, scale, threshold)
        shares, average = reference.pck(*args, strict=strict)
        np.testing.assert_allclose(scores.joint_pck[i], shares, rtol=0, atol=1e-15)
        assert scores.pck[i] == pytest.approx(average, abs=1e-15, nan_ok=True)
        assert math.isnan(scores.pck[i]) == (not all_seen and not strict)
    assert scores.num_counted == tuple((confidence > 0.5).sum(0))


def test_a_distance_on_the_threshold_is_correct() -> None:
    target = torch.zeros(3, 21, 2).double()
    pred, scale = target.clone(), torch.full((3,), 120.0).double()
    pred[0, :, 0] = 120 * 0.05
    pred[1, :, 1] = float(np.nextafter(120 * 0.05, 100))
    pred[2, :, 1] = -120 * 0.15
    scores = _pck(pred, target, torch.ones(3, 21), scale)
    assert scores.pck == pytest.approx((1 / 3, 2 / 3, 1))


def test_streaming_equals_all_at_once_and_float32_is_scored_in_float64() -> None:
    tensors = [x.float() for x in to_tensors(Scene().pred_joints, Scene().joints)]
    pose, once = PoseAccumulator(), PoseAccumulator()
    stream(pose.update, *tensors)
    once.update(*(x.double() for x in tensors))
    assert asdict(pose.summary()) == pytest.approx(asdict(once.summary()), rel=1e-13)
    tensors = [x.float() for x in to_tensors(*_joints_2d())]
    whole = PckAccumulator()
    whole.update(*(x.double() for x in tensors))
    assert _pck(*tensors) == whole.summary()


def test_bad_input_is_an_error() -> None:
    pred, truth = to_tensors(Scene().pred_joints, Scene().joints)
    with pytest.raises(ValueError, match=r"^target must have shape \(6, 21, 3\), got \(5, 21, 3\)"):
        PoseAccumulator().update(pred, truth[1:])
    pred[2, 4, 1] = math.nan
    with pytest.raises(
        ValueError, match=r"^joints: 1 of 6 scored hands are not finite .first: \d+.$"
    ):
        PoseAccumulator().update(pred, truth)
    with pytest.raises(ValueError, match="no sample was scored"):
        PoseAccumulator().summary()


def test_bad_input_of_pck_is_an_error() -> None:
    pred, truth, confidence, scale = to_tensors(*_joints_2d())
    update = PckAccumulator().update
    with pytest.raises(ValueError, match=r"^confidence must have shape \(12, 21\), got \(12, 20\)"):
        update(pred, truth, confidence[:, 1:], scale)
    with pytest.raises(ValueError, match=r"^scale_px must be positive.*; 2 of 12 are not$"):
        update(pred, truth, confidence, torch.cat((scale[:10], torch.tensor([0, math.nan]))))
    broken = pred.clone()
    broken[0, 5] = math.inf
    with pytest.raises(
        ValueError, match=r"^pred_2d: 1 of 12 scored hands are not finite .first: \d+.$"
    ):
        update(broken, truth, confidence, scale)
    with pytest.raises(
        ValueError, match=r"^target_2d: \d+ of 12 scored hands are not finite .first: \d+.$"
    ):
        update(pred, truth, torch.ones_like(confidence), scale)
    confidence[3, 3] = math.nan
    with pytest.raises(
        ValueError, match=r"^confidence: 1 of 12 scored hands are not finite .first: \d+.$"
    ):
        update(pred, truth, confidence, scale)
    with pytest.raises(ValueError, match="no sample was scored"):
        PckAccumulator().summary()
