import math

import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.geometry.rotation import (
    axis_angle_to_rotmat,
    matmul_small,
    mirror_axis_angle,
    mirror_rotmat,
    rot6d_to_rotmat,
    rotate,
    rotmat_to_axis_angle,
    rotmat_to_rot6d,
)
from tests.strategies import rotvecs

# Measured worst over 80,000 rotations, both ways: 1.1e-15 and 4.8e-7.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6}
DTYPES = [torch.float64, torch.float32]


def _many_rotvecs() -> Tensor:
    """Angles over [0, pi], and towards 0 and pi in powers of ten."""
    rng = np.random.default_rng(0)
    axis = rng.normal(size=(4000, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    powers = 10.0 ** -rng.uniform(0, 14, 1000)
    around_switch = rng.uniform(0.009, 0.011, 1000)
    angle = np.concatenate([rng.uniform(0, math.pi, 1000), powers, math.pi - powers, around_switch])
    return torch.from_numpy(axis * angle[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_axis_angle_to_rotmat_matches_scipy(dtype: torch.dtype) -> None:
    aa = _many_rotvecs().to(dtype)
    expected = Rotation.from_rotvec(aa.double().numpy()).as_matrix()
    actual = axis_angle_to_rotmat(aa)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotmat_to_axis_angle_matches_scipy(dtype: torch.dtype) -> None:
    R = torch.from_numpy(Rotation.from_rotvec(_many_rotvecs().numpy()).as_matrix()).to(dtype)
    expected = Rotation.from_matrix(R.double().numpy()).as_rotvec()
    actual = rotmat_to_axis_angle(R).double().numpy()
    # Near pi both signs of the axis are right, so the turn between the two answers is compared.
    between = Rotation.from_rotvec(actual).inv() * Rotation.from_rotvec(expected)
    assert between.magnitude().max() < TOLERANCE[dtype]
    assert np.linalg.norm(actual, axis=1).max() <= math.pi + 1e-6


def test_zero_vector_is_exactly_the_identity() -> None:
    assert torch.equal(axis_angle_to_rotmat(torch.zeros(2, 3)), torch.eye(3).expand(2, 3, 3))
    assert torch.equal(rotmat_to_axis_angle(torch.eye(3)), torch.zeros(3))


def test_half_turns_come_back_about_the_same_axis() -> None:
    axes = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0, -0.8]], dtype=torch.float64)
    back = rotmat_to_axis_angle(2 * axes[:, :, None] * axes[:, None, :] - torch.eye(3).double())
    torch.testing.assert_close(back.norm(dim=-1), torch.full((4,), math.pi).double())
    torch.testing.assert_close((back * axes).sum(-1).abs(), torch.full((4,), math.pi).double())


def test_axis_angle_is_differentiable_at_zero_and_across_the_series_switch() -> None:
    points = torch.tensor([[0.0, 0, 0], [1e-9, 0, 0], [0.00999, 0, 0], [0.6, -1.2, 2.2]])
    for point in points.double():
        leaf = point.clone().requires_grad_()
        assert torch.autograd.gradcheck(axis_angle_to_rotmat, leaf)
        assert torch.autograd.gradgradcheck(axis_angle_to_rotmat, leaf)


def test_rotmat_to_axis_angle_is_differentiable_up_to_the_identity() -> None:
    points = torch.tensor([[0.0, 0, 0], [1e-5, 0, 0], [0.0199, 0.001, 0], [0.6, -1.2, 2.2]])
    for point in points.double():
        leaf = axis_angle_to_rotmat(point).requires_grad_()
        assert torch.autograd.gradcheck(rotmat_to_axis_angle, leaf)


@given(rotvecs())
def test_axis_angle_round_trip_is_the_same_rotation(aa: Tensor) -> None:
    R = axis_angle_to_rotmat(aa)
    torch.testing.assert_close(axis_angle_to_rotmat(rotmat_to_axis_angle(R)), R, rtol=0, atol=1e-12)
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double(), rtol=0, atol=1e-12)


@given(rotvecs())
def test_rot6d_round_trip_and_layout(aa: Tensor) -> None:
    R = axis_angle_to_rotmat(aa)
    d6 = rotmat_to_rot6d(R)
    assert d6.tolist() == [*R[:, 0].tolist(), *R[:, 1].tolist()]
    torch.testing.assert_close(rot6d_to_rotmat(d6), R, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rot6d_matches_gram_schmidt_by_qr(dtype: torch.dtype) -> None:
    d6 = torch.from_numpy(np.random.default_rng(1).normal(size=(50, 6))).to(dtype)
    for row, R in zip(d6.double().numpy(), rot6d_to_rotmat(d6).double().numpy(), strict=True):
        q, r = np.linalg.qr(np.stack([row[:3], row[3:]], 1))
        q = q * np.sign(np.diag(r))  # QR leaves the signs open; Gram-Schmidt keeps a1's
        expected = np.stack([q[:, 0], q[:, 1], np.cross(q[:, 0], q[:, 1])], 1)
        np.testing.assert_allclose(R, expected, rtol=0, atol=10 * TOLERANCE[dtype])


def test_rot6d_gradient() -> None:
    d6 = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 6))).requires_grad_()
    assert torch.autograd.gradcheck(rot6d_to_rotmat, d6)


def test_degenerate_rot6d_is_finite() -> None:
    d6 = torch.tensor([[0.0] * 6, [1, 0, 0, 2, 0, 0]], requires_grad=True)
    R = rot6d_to_rotmat(d6)
    (gradient,) = torch.autograd.grad(R.sum(), d6)
    assert R.isfinite().all()
    assert gradient.isfinite().all()


@given(rotvecs())
def test_mirror_is_conjugation_by_the_flip(aa: Tensor) -> None:
    M = torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    R = axis_angle_to_rotmat(aa)
    mirrored = mirror_rotmat(R)
    assert torch.equal(mirrored, M @ R @ M)
    assert torch.equal(mirror_rotmat(mirrored), R)
    torch.testing.assert_close(axis_angle_to_rotmat(mirror_axis_angle(aa)), mirrored)


def test_small_products_match_einsum_and_broadcast() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(4, 2, 3, 3)), rng.normal(size=(2, 3, 3))
    points = rng.normal(size=(4, 2, 7, 3))
    product = matmul_small(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    np.testing.assert_allclose(product, np.einsum("abik,bkj->abij", left, right), atol=1e-14)
    turned = rotate(torch.from_numpy(left), torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(turned, np.einsum("abik,abnk->abni", left, points), atol=1e-14)


def test_small_products_ignore_autocast() -> None:
    R = torch.full((3, 3), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product, turned = matmul_small(R, R), rotate(R, R)
    assert product.dtype == turned.dtype == torch.float32
    torch.testing.assert_close(product, torch.full((3, 3), 3 * 1.001**2))
    torch.testing.assert_close(turned, torch.full((3, 3), 3 * 1.001**2))
