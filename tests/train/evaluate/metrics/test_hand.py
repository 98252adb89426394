import math

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from model.geometry.align import apply_similarity
from model.geometry.rotation import axis_angle_to_rotmat
from tests.reference import metrics as reference
from tests.strategies import hands, rotvecs
from train.evaluate.metrics.hand import (
    HandScores,
    ScoreAccumulator,
    auc,
    f_score,
    mpjpe_mm,
    mpvpe_mm,
    pa_mpjpe_mm,
    pa_mpvpe_mm,
)

Errors = list[list[float | None]]


class Scene:
    """Random hands whose prediction is some millimetres off; some joints not valid."""

    def __init__(self, num: int = 5, num_vertices: int = 778, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        place = rng.normal([0, 0, 0.6], 0.1, (num, 1, 3))
        self.joints = rng.normal(0, 0.04, (num, 21, 3)) + place
        self.vertices = rng.normal(0, 0.04, (num, num_vertices, 3)) + place
        self.pred_joints = self.joints + rng.normal(0, 0.015, self.joints.shape) + 0.1
        self.pred_vertices = self.vertices + rng.normal(0, 0.004, self.vertices.shape) - 0.05
        self.valid = rng.random((num, 21)) > 0.25
        self.valid[:, 0] = True
        self.valid[:, 7] = False  # a joint no hand has
        if num > 1:
            self.valid[1, 0] = False
            self.valid[2] = np.arange(21) < 2  # too few to align
        self.nan_joints = np.where(self.valid[..., None], self.joints, np.nan)


def _t(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def _masked(values: list[float], valid: np.ndarray) -> list[float | None]:
    return [value if ok else None for value, ok in zip(values, valid, strict=True)]


def _rooted_errors(scene: Scene) -> Errors:
    errors = []
    for i in range(len(scene.joints)):
        pred = 1000 * (scene.pred_joints[i] - scene.pred_joints[i, 0])
        truth = 1000 * (scene.joints[i] - scene.joints[i, 0])
        rooted = scene.valid[i] & scene.valid[i, 0]
        errors.append(_masked(reference.distances(pred, truth), rooted))
    return errors


def _aligned_errors(scene: Scene) -> Errors:
    errors: Errors = []
    for i, used in enumerate(scene.valid):
        if used.sum() < 3:
            errors.append([None] * 21)
            continue
        aligned = reference.align(1000 * scene.joints[i], 1000 * scene.pred_joints[i], used)
        errors.append(_masked(reference.distances(aligned, 1000 * scene.joints[i]), used))
    return errors


def _aligned_meshes(scene: Scene) -> list[np.ndarray]:
    pairs = zip(scene.vertices, scene.pred_vertices, strict=True)
    return [reference.align(1000 * truth, 1000 * pred) for truth, pred in pairs]


def test_joint_scores_match_the_loops() -> None:
    scene = Scene()
    args = _t(scene.pred_joints, scene.nan_joints, scene.valid)
    assert mpjpe_mm(*args) == pytest.approx(reference.mean_over_points(_rooted_errors(scene)))
    expected = reference.mean_over_points(_aligned_errors(scene))
    assert pa_mpjpe_mm(*args) == pytest.approx(expected, abs=1e-9)


def test_order_of_means_is_hands_first() -> None:
    """Two hands, one joint seen twice: 10 mm and 0 mm; the other once: 30 mm."""
    truth = torch.zeros(2, 21, 3)
    pred = truth.clone()
    pred[0, 1, 0], pred[0, 2, 1] = 0.010, 0.030
    valid = torch.zeros(2, 21, dtype=torch.bool)
    valid[:, :2] = True
    valid[0, 2] = True
    assert mpjpe_mm(pred, truth, valid) == pytest.approx((0 + 5 + 30) / 3)  # not 40 / 5


def test_mesh_scores_match_the_loops() -> None:
    scene = Scene(num=3, num_vertices=60)
    pred, truth = _t(scene.pred_vertices, scene.vertices)
    wrists = _t(scene.pred_joints[:, 0], scene.joints[:, 0])
    errors: Errors = []
    for i in range(3):
        moved = 1000 * (scene.pred_vertices[i] - scene.pred_joints[i, 0])
        errors.append(
            [*reference.distances(moved, 1000 * (scene.vertices[i] - scene.joints[i, 0]))]
        )
    assert mpvpe_mm(pred, truth, *wrists) == pytest.approx(reference.mean_over_points(errors))
    errors = []
    for i, aligned in enumerate(_aligned_meshes(scene)):
        errors.append([*reference.distances(aligned, 1000 * scene.vertices[i])])
    expected = reference.mean_over_points(errors)
    assert pa_mpvpe_mm(pred, truth) == pytest.approx(expected, abs=1e-9)


def test_auc_matches_the_loops() -> None:
    rng = np.random.default_rng(2)
    errors = rng.exponential(20, (40, 6))
    errors[:3] = 50 * np.array([[0], [7], [99]]) / 99  # on the limits
    valid = rng.random(errors.shape) > 0.2
    expected = reference.area(
        [_masked(row.tolist(), ok) for row, ok in zip(errors, valid, strict=True)], 50, 100
    )
    assert auc(*_t(errors, valid)) == pytest.approx(expected, abs=1e-12)
    expected = reference.area([row.tolist() for row in errors], 30, 11)
    assert auc(*_t(errors), max_mm=30.0, steps=11) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("error_mm", "expected"),
    [(0.0, 1.0), (50.0, 0.5 / 99), (50.1, 0.0), (25.0, (50 + 0.5 - 1) / 99)],
)
def test_auc_of_one_error_by_hand(error_mm: float, expected: float) -> None:
    # 25 mm lies between limits 49 and 50: ones from 50 to 99, and half a step before.
    assert auc(torch.tensor([[error_mm]])) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [2.0, 5.0, 15.0])
def test_f_score_matches_a_kd_tree(threshold: float) -> None:
    scene = Scene(num=34, num_vertices=90)  # more than one chunk
    pred_all, truth_all = _t(scene.pred_vertices + 0.05, scene.vertices)
    actual = f_score(pred_all, truth_all, threshold).numpy()
    for i, score in enumerate(actual):
        pred, truth = 1000 * (scene.pred_vertices[i] + 0.05), 1000 * scene.vertices[i]
        assert score == pytest.approx(reference.f_score(truth, pred, threshold), abs=1e-12)
    assert actual.min() > 0 or threshold < 5


def test_f_score_is_strict_both_ways_and_zero_far_away() -> None:
    one = torch.zeros(1, 1, 3, dtype=torch.float64)
    two = torch.tensor([[[0.0, 0, 0], [0, 0, 0.0078125]]], dtype=torch.float64)  # exact in binary
    for pred, truth in ((one, two), (two, one)):
        assert float(f_score(pred, truth, 7.8125)) == pytest.approx(2 / 3)
        assert float(f_score(pred, truth, 7.8126)) == 1
        assert float(f_score(pred + 9, truth, 15.0)) == 0


def test_f_score_counts_both_ways() -> None:
    truth = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]])
    pred = torch.tensor([[[0.0, 0, 0.001]]])
    assert float(f_score(pred, truth, 5.0)) == pytest.approx(2 * 1 * 0.25 / 1.25)


@given(hands())
def test_a_perfect_prediction_scores_zero_error(joints: Tensor) -> None:
    valid = torch.ones(3, 21, dtype=torch.bool)
    assert mpjpe_mm(joints, joints, valid) == 0
    assert pa_mpjpe_mm(joints, joints, valid) < 1e-9
    assert pa_mpvpe_mm(joints, joints) < 1e-9
    assert mpvpe_mm(joints, joints, joints[:, 0], joints[:, 0]) == 0
    assert f_score(joints, joints, 0.001).eq(1).all()


@given(hands(), hands(), rotvecs())
def test_aligned_scores_ignore_a_similarity_and_a_mirror(
    pred: Tensor, truth: Tensor, aa: Tensor
) -> None:
    valid = torch.ones(3, 21, dtype=torch.bool)
    scale, t = torch.tensor(0.4).double(), torch.tensor([1.0, -3, 0.2]).double()
    R = axis_angle_to_rotmat(aa) * torch.tensor([-1.0, 1, 1]).double()
    moved = apply_similarity(scale, R, t, pred)
    expected = pa_mpjpe_mm(pred, truth, valid)
    assert pa_mpjpe_mm(moved, truth, valid) == pytest.approx(expected, abs=1e-8)
    assert pa_mpvpe_mm(moved, truth) == pytest.approx(pa_mpvpe_mm(pred, truth), abs=1e-8)


@given(hands(), hands())
def test_root_relative_scores_ignore_a_shift_only(pred: Tensor, truth: Tensor) -> None:
    valid = torch.ones(3, 21, dtype=torch.bool)
    expected = mpjpe_mm(pred, truth, valid)
    assert mpjpe_mm(pred + 0.3, truth, valid) == pytest.approx(expected, abs=1e-9)
    assert mpjpe_mm(2 * pred, truth, valid) != pytest.approx(expected, rel=1e-3)


def test_streaming_equals_the_whole_and_the_loops() -> None:
    scene = Scene(num=7)
    has_mesh = np.array([True, True, True, False, True, True, True])
    scores = ScoreAccumulator()
    truth = np.where(has_mesh[:, None, None], scene.vertices, np.nan)
    tensors = _t(scene.pred_joints, scene.nan_joints, scene.valid)
    meshes = _t(scene.pred_vertices, truth, has_mesh)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 7)):
        pred_vertices, gt_vertices, has = (x[rows] for x in meshes)
        scores.update(
            *(x[rows] for x in tensors),
            vertices=pred_vertices,
            target_vertices=gt_vertices,
            has_vertices=has,
        )
    actual = scores.summary()

    used = has_mesh & scene.valid[:, 0]
    aligned = _aligned_meshes(scene)
    mesh_pa: Errors = []
    mesh_root: Errors = []
    f5, f15 = [], []
    for i in np.flatnonzero(used):
        gt = 1000 * scene.vertices[i]
        mesh_pa.append([*reference.distances(aligned[i], gt)])
        pred = 1000 * (scene.pred_vertices[i] - scene.pred_joints[i, 0])
        mesh_root.append([*reference.distances(pred, gt - 1000 * scene.joints[i, 0])])
        f5.append(reference.f_score(gt, aligned[i], 5))
        f15.append(reference.f_score(gt, aligned[i], 15))
    expected = HandScores(
        num_hands=7,
        num_meshes=int(used.sum()),
        mpjpe_mm=reference.mean_over_points(_rooted_errors(scene)),
        pa_mpjpe_mm=reference.mean_over_points(_aligned_errors(scene)),
        auc_j=reference.area(_aligned_errors(scene), 50, 100),
        mpvpe_mm=reference.mean_over_points(mesh_root),
        pa_mpvpe_mm=reference.mean_over_points(mesh_pa),
        auc_v=reference.area(mesh_pa, 50, 100),
        f5=float(np.mean(f5)),
        f15=float(np.mean(f15)),
    )
    for name in HandScores.__dataclass_fields__:
        assert getattr(actual, name) == pytest.approx(getattr(expected, name), abs=1e-9), name
    assert actual.mpjpe_mm == pytest.approx(mpjpe_mm(*tensors))
    assert actual.pa_mpjpe_mm == pytest.approx(pa_mpjpe_mm(*tensors))


def test_scores_without_meshes_say_none() -> None:
    accumulator = ScoreAccumulator()
    scene = Scene()
    accumulator.update(*_t(scene.pred_joints, scene.nan_joints, scene.valid))
    scores = accumulator.summary()
    assert scores.num_meshes == 0
    assert scores.f5 is scores.f15 is scores.auc_v is scores.mpvpe_mm is scores.pa_mpvpe_mm is None
    assert math.isfinite(scores.mpjpe_mm)


def test_hands_without_a_valid_joint_are_not_counted() -> None:
    scores = ScoreAccumulator()
    with pytest.raises(ValueError, match="no hand was scored"):
        scores.summary()
    nothing = torch.full((2, 21, 3), math.nan)
    scores.update(nothing, nothing, torch.zeros(2, 21, dtype=torch.bool))
    with pytest.raises(ValueError, match="no hand was scored"):
        scores.summary()
    scene = Scene(num=1)
    scores.update(*_t(scene.pred_joints, scene.nan_joints, scene.valid))
    assert scores.summary().num_hands == 1


def test_zero_hands_are_a_clear_error() -> None:
    empty = torch.zeros(0, 21, 3)
    none = torch.zeros(0, 21, dtype=torch.bool)
    for score in (mpjpe_mm, pa_mpjpe_mm):
        with pytest.raises(ValueError, match="no hand to score: all 21 points"):
            score(empty, empty, none)
    with pytest.raises(ValueError, match="no hand to score"):
        pa_mpvpe_mm(torch.zeros(0, 778, 3), torch.zeros(0, 778, 3))
    assert f_score(torch.zeros(0, 5, 3), torch.zeros(0, 5, 3), 5.0).shape == (0,)


def test_a_missing_prediction_is_an_error_and_not_a_better_score() -> None:
    scene = Scene()
    pred, truth, valid = _t(scene.pred_joints, scene.nan_joints, scene.valid)
    broken = pred.clone()
    broken[3, 0] = math.nan
    with pytest.raises(ValueError, match=r"^joints: 1 of 5 scored hands are not finite"):
        ScoreAccumulator().update(broken, truth, valid)
    with pytest.raises(ValueError, match=r"^target: 5 of 5 scored hands are not finite"):
        ScoreAccumulator().update(pred, truth, torch.ones_like(valid))


def test_shapes_and_halves_are_refused() -> None:
    joints, valid = torch.zeros(2, 21, 3), torch.ones(2, 21, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"got \(2, 21, 3\) and \(1, 21, 3\)"):
        mpjpe_mm(joints, joints[:1], valid)
    with pytest.raises(ValueError, match="given together"):
        ScoreAccumulator().update(joints, joints, valid, vertices=torch.zeros(2, 778, 3))
