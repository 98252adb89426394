import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.geometry.align import apply_similarity, procrustes
from model.geometry.rotation import axis_angle_to_rotmat
from tests.strategies import hands, rotvecs


def _best_orthogonal(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Return scale and R of ``target ~ scale * R @ source`` about the means, by scipy."""
    source, target = source - source.mean(0), target - target.mean(0)
    R_row, total = orthogonal_procrustes(source, target)
    return total / (source**2).sum(), R_row.T


@given(hands(num_hands=2), hands(num_hands=2))
def test_reflection_allowed_matches_scipy_orthogonal_procrustes(
    source: Tensor, target: Tensor
) -> None:
    scale, R, t = procrustes(source, target, reflection=True)
    for i in range(len(source)):
        expected_scale, expected_R = _best_orthogonal(source[i].numpy(), target[i].numpy())
        np.testing.assert_allclose(float(scale[i]), expected_scale, rtol=1e-10)
        np.testing.assert_allclose(R[i].numpy(), expected_R, atol=1e-8)
        moved = float(scale[i]) * source[i].numpy() @ expected_R.T + t[i].numpy()
        np.testing.assert_allclose(moved.mean(0), target[i].numpy().mean(0), atol=1e-10)


@given(hands(num_hands=2), hands(num_hands=2))
def test_proper_rotation_matches_scipy_align_vectors(source: Tensor, target: Tensor) -> None:
    _, R, _ = procrustes(source, target, reflection=False)
    for i in range(len(source)):
        a, b = source[i].numpy(), target[i].numpy()
        expected, _ = Rotation.align_vectors(b - b.mean(0), a - a.mean(0))
        np.testing.assert_allclose(R[i].numpy(), expected.as_matrix(), atol=1e-7)


@given(hands(num_hands=1), hands(num_hands=1))
def test_no_step_away_from_the_answer_is_better(source: Tensor, target: Tensor) -> None:
    rng = np.random.default_rng(0)

    def cost(scale: float, R: np.ndarray, t: np.ndarray) -> float:
        total = 0.0
        for p, q in zip(source[0].numpy(), target[0].numpy(), strict=True):
            total += float(((scale * R @ p + t - q) ** 2).sum())
        return total

    scale, R, t = (x[0].numpy() for x in procrustes(source, target, reflection=False))
    best = cost(float(scale), R, t)
    for _ in range(5):
        turn = Rotation.from_rotvec(rng.normal(0, 0.01, 3)).as_matrix()
        near = cost(float(scale) * (1 + rng.normal(0, 0.01)), turn @ R, t + rng.normal(0, 1e-3, 3))
        assert near >= best


@given(hands(), rotvecs())
def test_a_similarity_is_recovered(source: Tensor, aa: Tensor) -> None:
    R, t = axis_angle_to_rotmat(aa), torch.tensor([0.3, -2.0, 1.0]).double()
    target = apply_similarity(torch.tensor(1.7).double(), R, t, source)
    scale, found_R, found_t = procrustes(source, target, reflection=False)
    torch.testing.assert_close(scale, torch.full((3,), 1.7).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(found_R, R.expand(3, 3, 3), rtol=0, atol=1e-9)
    moved = apply_similarity(scale, found_R, found_t, source)
    torch.testing.assert_close(moved, target, rtol=0, atol=1e-10)


@given(hands())
def test_only_reflection_undoes_a_mirror(source: Tensor) -> None:
    target = source * torch.tensor([-1.0, 1, 1]).double()
    moved = apply_similarity(*procrustes(source, target, reflection=True), source)
    torch.testing.assert_close(moved, target, rtol=0, atol=1e-10)
    _, R, _ = procrustes(source, target, reflection=False)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(3).double())
    moved = apply_similarity(*procrustes(source, target, reflection=False), source)
    assert (moved - target).abs().max() > 1e-3


def test_invalid_points_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    source, target = (torch.from_numpy(rng.normal(size=(3, 21, 3))) for _ in range(2))
    valid = torch.from_numpy(rng.random((3, 21)) > 0.4)
    nan = torch.where(valid[..., None], target, float("nan"))
    result = procrustes(source, nan, reflection=True, valid=valid)
    for i in range(3):
        alone = procrustes(source[i, valid[i]], target[i, valid[i]], reflection=True)
        for actual, expected in zip(result, alone, strict=True):
            torch.testing.assert_close(actual[i], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_valid", [0, 1, 2])
def test_degenerate_sets_stay_finite(num_valid: int) -> None:
    valid = torch.arange(5) < num_valid
    points = torch.rand(5, 3, dtype=torch.float64)
    for part in procrustes(points, points + 1, reflection=False, valid=valid):
        assert part.isfinite().all()


def test_coinciding_source_points_get_scale_zero() -> None:
    target = torch.rand(4, 3, dtype=torch.float64)
    scale, R, t = procrustes(torch.ones(4, 3, dtype=torch.float64), target, reflection=True)
    assert float(scale) == 0
    torch.testing.assert_close(apply_similarity(scale, R, t, target), target.mean(0).expand(4, 3))
