import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tests.reference import ho3d as reference
from tests.reference import points
from tests.train.evaluate.metrics.scenes import NUM_HANDS, Scene, stream
from train.evaluate.metrics.freihand import FreihandAccumulator
from train.evaluate.metrics.ho3d import Ho3dAccumulator, Ho3dScores, official


def _scores(scene: Scene, *, strict: bool = False) -> Ho3dScores:
    accumulator = Ho3dAccumulator(strict=strict)
    stream(accumulator.update, *scene.tensors())
    return accumulator.summary()


def _without_palm() -> Scene:
    """Two predictions whose joints 0 and 4 coincide."""
    scene = Scene()
    for hand in (0, 5):
        scene.pred_joints[hand, 4] = scene.pred_joints[hand, 0]
    return scene


@pytest.mark.parametrize("strict", [False, True], ids=["official", "strict"])
@pytest.mark.parametrize("scene", [_without_palm(), Scene(300)], ids=["778", "300"])
def test_scores_match_the_loops(scene: Scene, strict: bool) -> None:  # noqa: FBT001
    actual = official(_scores(scene, strict=strict))
    expected = reference.score(*scene.arrays(), strict=strict)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_all_but_the_second_alignment_is_freihands() -> None:
    scene = Scene()
    shared = FreihandAccumulator()
    shared.update(*scene.tensors())
    scores = asdict(_scores(scene))
    expected = asdict(shared.summary())
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-13)
    assert scores.keys() - expected.keys() == {"st_mpjpe_mm", "st_auc_j", "num_without_palm"}


def test_a_hand_without_a_palm_counts_unless_strict() -> None:
    scene = _without_palm()
    scores, strict = _scores(scene), _scores(scene, strict=True)
    assert scores.num_without_palm == strict.num_without_palm == 2
    left = [1, 2, 3, 4]
    accumulator = Ho3dAccumulator()
    accumulator.update(*(x[left] for x in scene.tensors()))
    assert strict.st_mpjpe_mm == pytest.approx(accumulator.summary().st_mpjpe_mm, rel=1e-12)
    assert strict.st_auc_j == pytest.approx(accumulator.summary().st_auc_j, abs=1e-12)
    assert scores.st_mpjpe_mm != pytest.approx(strict.st_mpjpe_mm, rel=1e-3)
    assert strict.num_samples == 6


def test_a_zero_prediction_has_no_scale_translation_number_in_strict() -> None:
    joints, target, mesh, target_mesh = Scene().tensors()
    args = (torch.zeros_like(joints), target, torch.zeros_like(mesh), target_mesh)
    strict, default = Ho3dAccumulator(strict=True), Ho3dAccumulator()
    strict.update(*args)
    default.update(*args)
    scores = strict.summary()
    assert scores.st_mpjpe_mm is scores.st_auc_j is None
    assert official(scores)["xyz_scale_trans_al_mean3d"] == -100
    assert official(scores)["xyz_scale_trans_al_auc3d"] == -1
    # Officially all points land on the true wrist.
    to_wrist = (target - target[:, :1]).square().sum(-1).sqrt().mean()
    assert default.summary().st_mpjpe_mm == pytest.approx(1000 * float(to_wrist), rel=1e-12)


def test_errors_on_a_threshold_count_as_hits() -> None:
    """The palm is 1 m long in both, so the second alignment is exact, and errors are limits."""
    limits = np.linspace(0, 0.05, 100)
    errors = limits[np.random.default_rng(4).integers(0, 100, (NUM_HANDS, 21))]
    errors[:, [0, 4]] = 0
    target = torch.zeros(NUM_HANDS, 21, 3).double()
    target[:, 4, 1] = 1
    pred = target.clone()
    pred[:, :, 0] += torch.from_numpy(errors)
    mesh = torch.zeros(NUM_HANDS, 778, 3).double()
    accumulator = Ho3dAccumulator()
    accumulator.update(pred, target, mesh, mesh)
    mean, auc = points.mean_and_auc(list(errors), limits)
    assert accumulator.summary().st_auc_j == pytest.approx(auc, abs=1e-15)
    assert accumulator.summary().auc_j == pytest.approx(auc, abs=1e-15)
    assert accumulator.summary().st_mpjpe_mm == pytest.approx(1000 * mean, rel=1e-12)


def test_streaming_equals_all_at_once_and_float32_is_scored_in_float64() -> None:
    tensors = [x.float() for x in _without_palm().tensors()]
    batches, once = Ho3dAccumulator(strict=True), Ho3dAccumulator(strict=True)
    stream(batches.update, *tensors)
    once.update(*(x.double() for x in tensors))
    assert asdict(batches.summary()) == pytest.approx(asdict(once.summary()), rel=1e-13)


def test_bad_input_is_an_error() -> None:
    tensors = Scene().tensors()
    with pytest.raises(ValueError, match=r"^joints must have shape \(6, 21, 3\), got \(6, 16, 3\)"):
        Ho3dAccumulator().update(tensors[0][:, :16], *tensors[1:])
    tensors[1][2, 3, 1] = math.inf
    with pytest.raises(ValueError, match=r"^target: 1 of 6 scored hands are not finite"):
        Ho3dAccumulator().update(*tensors)
    with pytest.raises(ValueError, match="no sample was scored"):
        Ho3dAccumulator().summary()
