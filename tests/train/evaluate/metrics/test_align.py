from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from model.geometry.align import apply_similarity
from model.geometry.rotation import axis_angle_to_rotmat
from tests.reference import procrustes as reference
from tests.strategies import hands, rotvecs
from tests.train.evaluate.metrics.scenes import (
    COLLINEAR,
    FLAT_PREDICTION,
    FLAT_TRUTH,
    MIRRORED,
    NOT_FLAT,
    NUM_HANDS,
    Scene,
    to_tensors,
)
from train.evaluate.metrics.align import (
    align_by_joints,
    align_proper,
    align_scale_translation,
    align_w_scale,
    is_reflected,
    palm_length,
)
from train.evaluate.metrics.errors import distance

Align = Callable[[Tensor, Tensor], Tensor]
Reference = Callable[[np.ndarray, np.ndarray], np.ndarray]
PAIRS: list[tuple[Align, Reference]] = [
    (align_w_scale, reference.align_w_scale),
    (align_proper, reference.align_proper),
    (align_scale_translation, reference.scale_translation),
]


@pytest.mark.parametrize(("align", "oracle"), PAIRS)
def test_errors_match_the_loops_for_awkward_hands_too(align: Align, oracle: Reference) -> None:
    """Errors, not points: what a flat truth leaves open is on which side of it the points lie."""
    scene = Scene()
    pred, truth = to_tensors(scene.pred_joints, scene.joints)
    errors = distance(align(pred, truth), truth).numpy()
    for i in range(NUM_HANDS):
        aligned = oracle(scene.joints[i], scene.pred_joints[i])
        expected = np.sqrt(((aligned - scene.joints[i]) ** 2).sum(-1))
        np.testing.assert_allclose(errors[i], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("align", "oracle"), PAIRS)
def test_points_match_the_loops_where_the_alignment_is_unique(
    align: Align, oracle: Reference
) -> None:
    scene = Scene()
    aligned = align(*to_tensors(scene.pred_joints, scene.joints)).numpy()
    unique = [i for i in range(NUM_HANDS) if i not in (FLAT_TRUTH, COLLINEAR)]
    for i in unique:
        expected = oracle(scene.joints[i], scene.pred_joints[i])
        np.testing.assert_allclose(aligned[i], expected, rtol=0, atol=1e-12)


def test_the_official_epsilon_is_kept() -> None:
    """A perfect prediction shrinks by 2e-8 over its norm, once for each normalised set."""
    truth = torch.from_numpy(Scene().joints[:1])
    norm = float((truth - truth.mean(1)).square().sum().sqrt())
    error = distance(align_w_scale(truth, truth), truth)
    expected = (truth - truth.mean(1)).square().sum(-1).sqrt() * 2e-8 / norm
    torch.testing.assert_close(error, expected, rtol=1e-4, atol=1e-15)
    assert distance(align_proper(truth, truth), truth).max() < 1e-15


def test_a_mirrored_hand_aligns_unless_the_rotation_must_be_proper() -> None:
    truth = torch.from_numpy(Scene().joints[:1])
    mirrored = truth * torch.tensor([-1.0, 1, 1]).double()
    assert is_reflected(mirrored, truth).tolist() == [True]
    assert distance(align_w_scale(mirrored, truth), truth).max() < 1e-8
    assert distance(align_proper(mirrored, truth), truth).max() > 0.005


def test_only_the_hands_with_another_proper_number_count_as_reflected() -> None:
    scene = Scene()
    pred, truth = to_tensors(scene.pred_joints, scene.joints)
    reflected = is_reflected(pred, truth)
    oracle = [
        reference.is_reflected(*pair) for pair in zip(scene.joints, scene.pred_joints, strict=True)
    ]
    assert reflected.tolist() == oracle
    assert reflected[MIRRORED]
    assert not reflected[[FLAT_TRUTH, FLAT_PREDICTION, COLLINEAR]].any()
    official = distance(align_w_scale(pred, truth), truth).mean(1)
    proper = distance(align_proper(pred, truth), truth).mean(1)
    assert ((official - proper).abs() > 1e-6).tolist() == reflected.tolist()


@pytest.mark.parametrize(("depth", "expected"), [(1e-3, True), (1e-6, False)])
def test_a_thin_hand_counts_as_reflected_and_a_flat_one_does_not(
    depth: float,
    expected: bool,  # noqa: FBT001
) -> None:
    """The third singular value goes with the square of the depth; the limit is 1e-9."""
    truth = torch.from_numpy(np.random.default_rng(5).normal(0, 0.04, (2, 21, 3)))
    truth[..., 2] *= depth
    mirrored = truth * torch.tensor([1.0, 1, -1]).double()
    assert is_reflected(mirrored, truth).tolist() == [expected] * 2
    assert is_reflected(truth, truth).tolist() == [False] * 2


@pytest.mark.parametrize("place", [[0.0, 0.0, 0.0], [0.1, 0.2, 0.3]])
def test_coincident_points_land_on_the_mean(place: list[float]) -> None:
    truth = torch.from_numpy(Scene().joints)
    pred = torch.tensor(place).double().expand_as(truth)
    mean = truth.mean(1, keepdim=True).expand_as(truth)
    for align in (align_w_scale, align_proper):
        torch.testing.assert_close(align(pred, truth), mean, rtol=0, atol=1e-12)
        # A truth without extent pulls every point onto itself.
        torch.testing.assert_close(align(truth, pred), pred, rtol=0, atol=1e-8)
    assert not is_reflected(pred, truth).any()
    assert not is_reflected(truth, pred).any()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("num", [5, 778, 1000])
def test_a_mesh_follows_its_joints(num: int, strict: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(num)
    scene = Scene()
    mesh = rng.normal(0.1, 0.04, (NUM_HANDS, num, 3))
    pred, truth = to_tensors(scene.pred_joints, scene.joints)
    actual = align_by_joints(torch.from_numpy(mesh), pred, truth, strict=strict).numpy()
    for i in NOT_FLAT:
        args = (mesh[i], scene.pred_joints[i], scene.joints[i])
        expected = reference.align_by_joints(*args, strict=strict)
        np.testing.assert_allclose(actual[i], expected, rtol=0, atol=1e-12)


def test_the_mesh_that_follows_its_joints_has_the_wrong_size_unless_strict() -> None:
    scene = Scene()
    joints, truth = to_tensors(scene.pred_joints[:1], scene.joints[:1])
    norm = (joints - joints.mean(1)).square().sum().sqrt() + 1e-8
    right = align_by_joints(joints, joints, truth, strict=True)
    torch.testing.assert_close(right, align_proper(joints, truth), rtol=0, atol=1e-12)
    official = align_by_joints(joints, joints, truth)
    spread = [(x - x.mean(1)).square().sum().sqrt() for x in (official, right)]
    torch.testing.assert_close(spread[0] / spread[1], norm, rtol=1e-6, atol=0)


def test_scale_and_translation_set_the_palm_and_the_wrist() -> None:
    pred, truth = to_tensors(Scene().pred_joints, Scene().joints)
    aligned = align_scale_translation(pred, truth)
    torch.testing.assert_close(palm_length(aligned), palm_length(truth), rtol=1e-12, atol=0)
    torch.testing.assert_close(aligned[:, 0], truth[:, 0], rtol=0, atol=1e-15)
    moved = align_scale_translation(3 * pred + 1, truth)
    torch.testing.assert_close(moved, aligned, rtol=0, atol=1e-12)


def test_a_prediction_without_a_palm_is_multiplied_by_the_true_length() -> None:
    scene = Scene()
    scene.pred_joints[:, 4] = scene.pred_joints[:, 0]
    scene.pred_joints[2] = 0
    aligned = align_scale_translation(*to_tensors(scene.pred_joints, scene.joints)).numpy()
    for i in range(NUM_HANDS):
        expected = reference.scale_translation(scene.joints[i], scene.pred_joints[i])
        np.testing.assert_allclose(aligned[i], expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(aligned[2], np.tile(scene.joints[2, 0], (21, 1)), atol=1e-15)


@given(hands(), hands(), rotvecs())
def test_alignments_ignore_a_similarity_of_the_prediction(
    pred: Tensor, truth: Tensor, aa: Tensor
) -> None:
    R = axis_angle_to_rotmat(aa)
    scale, t = torch.tensor(1.7).double(), torch.tensor([1.0, -3, 0.2]).double()
    moved = apply_similarity(scale, R, t, pred)
    # The 1e-8 in the norms is worth 1e-8 m here, the size of the hand over its norm.
    for align, atol in ((align_w_scale, 1e-8), (align_proper, 1e-12)):
        torch.testing.assert_close(align(moved, truth), align(pred, truth), rtol=0, atol=atol)
    assert torch.equal(is_reflected(moved, truth), is_reflected(pred, truth))


def test_float32_is_computed_in_float64() -> None:
    pred, truth = (x.float() for x in to_tensors(Scene().pred_joints, Scene().joints))
    for align in (align_w_scale, align_proper, align_scale_translation):
        assert torch.equal(align(pred, truth), align(pred.double(), truth.double()))
    mesh = align_by_joints(pred, pred, truth)
    assert torch.equal(mesh, align_by_joints(pred.double(), pred.double(), truth.double()))
    assert torch.equal(is_reflected(pred, truth), is_reflected(pred.double(), truth.double()))
