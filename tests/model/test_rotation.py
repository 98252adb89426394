import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.geometry.rotation import (
    Rot6dLayout,
    axis_angle_to_rotmat,
    matmul_small,
    mirror_axis_angle,
    mirror_rotmat,
    quat_wxyz_to_rotmat,
    quat_wxyz_to_xyzw,
    quat_xyzw_to_wxyz,
    rot6d_from_layout,
    rot6d_to_layout,
    rot6d_to_rotmat,
    rotate,
    rotation_angle,
    rotmat_to_axis_angle,
    rotmat_to_quat_wxyz,
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotmat_to_quat_matches_scipy(dtype: torch.dtype) -> None:
    R = torch.from_numpy(Rotation.from_rotvec(_many_rotvecs().numpy()).as_matrix()).to(dtype)
    actual = rotmat_to_quat_wxyz(R).double().numpy()
    assert (actual[:, 0] >= 0).all()
    expected = Rotation.from_matrix(R.double().numpy()).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    # Near pi, where w is near 0, both signs are right.
    expected *= np.sign((actual * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_quat_to_rotmat_matches_scipy_whatever_length_and_sign(dtype: torch.dtype) -> None:
    quat = np.random.default_rng(4).normal(size=(200, 4)) * np.logspace(-6, 6, 200)[:, None]
    expected = Rotation.from_quat(quat, scalar_first=True).as_matrix()
    for sign in (1.0, -1.0):
        actual = quat_wxyz_to_rotmat(torch.from_numpy(sign * quat).to(dtype))
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual.double().numpy(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_quat_orders_are_those_of_scipy() -> None:
    turns = Rotation.from_rotvec(np.random.default_rng(5).normal(size=(3, 3)))
    wxyz, xyzw = (
        torch.from_numpy(turns.as_quat(canonical=True, scalar_first=first))
        for first in (True, False)
    )
    assert torch.equal(quat_xyzw_to_wxyz(xyzw), wxyz)
    assert torch.equal(quat_wxyz_to_xyzw(wxyz), xyzw)
    torch.testing.assert_close(rotmat_to_quat_wxyz(torch.from_numpy(turns.as_matrix())), wxyz)


@given(rotvecs())
def test_quat_round_trip_is_the_same_rotation(aa: Tensor) -> None:
    R = axis_angle_to_rotmat(aa)
    quat = rotmat_to_quat_wxyz(R)
    torch.testing.assert_close(quat_wxyz_to_rotmat(quat), R, rtol=0, atol=1e-12)
    assert quat[0] >= 0
    assert math.isclose(float(quat.norm()), 1.0, abs_tol=1e-12)


def _turns_for_gradients() -> Tensor:
    """The identity, small turns, a plain one, and turns by nearly pi about each kind of axis."""
    near_pi = (math.pi - 1e-3) * torch.nn.functional.normalize(
        torch.tensor([[1.0, 0, 0], [0, 1, 0.1], [0.1, -0.2, 1], [-1, 1, 1]]), dim=-1
    )
    small = torch.tensor([[0.0, 0, 0], [1e-5, 0, 0], [0.0199, 0.001, 0], [0.6, -1.2, 2.2]])
    return torch.cat((small, near_pi)).double()


def test_quat_gradients_up_to_the_identity_and_near_pi() -> None:
    for point in _turns_for_gradients():
        # Through the exponential, so that finite differences stay on the rotations: off them the
        # four rows that the quaternion is read from disagree, and some of these points are ties.
        leaf = point.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda aa: rotmat_to_quat_wxyz(axis_angle_to_rotmat(aa)), leaf
        )
        quat = rotmat_to_quat_wxyz(axis_angle_to_rotmat(point)).requires_grad_()
        assert torch.autograd.gradcheck(quat_wxyz_to_rotmat, quat)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_angle_matches_scipy(dtype: torch.dtype) -> None:
    R = torch.from_numpy(Rotation.from_rotvec(_many_rotvecs().numpy()).as_matrix()).to(dtype)
    expected = Rotation.from_matrix(R.double().numpy()).magnitude()
    actual = rotation_angle(R)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_rotation_angle_resolves_tiny_turns() -> None:
    # An arc cosine of the trace would give 0 or 1.5e-8 here.
    R = axis_angle_to_rotmat(torch.tensor([[3e-12, 0, 4e-12], [0, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(rotation_angle(R)[0].item(), 5e-12, rtol=1e-9, atol=0)
    assert rotation_angle(R)[1] == 0


def test_rotation_angle_is_differentiable_from_the_identity_to_pi() -> None:
    half_turn = torch.diag(torch.tensor([1.0, -1, -1])).double()
    for R in (*axis_angle_to_rotmat(_turns_for_gradients()), half_turn):
        if not 0 < rotation_angle(R) < 1e-4:  # within the step of finite differences: the kink
            assert torch.autograd.gradcheck(rotation_angle, R.clone().requires_grad_())
    leaf = torch.eye(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(rotation_angle(leaf), leaf)
    assert torch.equal(gradient, torch.zeros(3, 3))


@given(rotvecs())
def test_rot6d_round_trip_and_layout(aa: Tensor) -> None:
    R = axis_angle_to_rotmat(aa)
    d6 = rotmat_to_rot6d(R)
    assert d6.tolist() == [*R[:, 0].tolist(), *R[:, 1].tolist()]
    torch.testing.assert_close(rot6d_to_rotmat(d6), R, rtol=0, atol=1e-12)


# A rotation whose nine entries are all different in size: no layout looks like another.
TURN = Rotation.from_rotvec([0.3, -0.7, 1.1]).as_matrix()
LAYOUTS = {
    Rot6dLayout.house: [TURN[i, j] for j in (0, 1) for i in (0, 1, 2)],
    Rot6dLayout.hawor: [TURN[i, j] for i in (0, 1, 2) for j in (0, 1)],
    Rot6dLayout.pytorch3d: [TURN[i, j] for i in (0, 1) for j in (0, 1, 2)],
}


@pytest.mark.parametrize("layout", Rot6dLayout)
def test_foreign_6d_layouts_of_a_lopsided_rotation(layout: Rot6dLayout) -> None:
    foreign = torch.tensor(LAYOUTS[layout], dtype=torch.float64)
    house = rot6d_from_layout(foreign, layout)
    torch.testing.assert_close(house, rotmat_to_rot6d(torch.from_numpy(TURN)), rtol=0, atol=1e-15)
    torch.testing.assert_close(rot6d_to_layout(house, layout), foreign, rtol=0, atol=1e-15)
    for other in Rot6dLayout:
        if other is not layout:
            wrong = rot6d_to_rotmat(rot6d_from_layout(foreign, other))
            assert rotation_angle(wrong @ torch.from_numpy(TURN).T) > 0.1


def _decode_hawor(d6: np.ndarray) -> np.ndarray:
    """HaWoR: reshape to [3, 2], Gram-Schmidt on the columns."""
    a1, a2 = d6.reshape(3, 2).T
    b1 = a1 / np.linalg.norm(a1)
    b2 = a2 - (b1 @ a2) * b1
    b2 /= np.linalg.norm(b2)
    return np.stack([b1, b2, np.cross(b1, b2)], 1)


def _decode_pytorch3d(d6: np.ndarray) -> np.ndarray:
    """PyTorch3D: Gram-Schmidt on two rows."""
    b1 = d6[:3] / np.linalg.norm(d6[:3])
    b2 = d6[3:] - (b1 @ d6[3:]) * b1
    b2 /= np.linalg.norm(b2)
    return np.stack([b1, b2, np.cross(b1, b2)], 0)


@pytest.mark.parametrize(
    ("layout", "decode"),
    [(Rot6dLayout.hawor, _decode_hawor), (Rot6dLayout.pytorch3d, _decode_pytorch3d)],
)
def test_raw_outputs_of_foreign_networks_decode_to_their_rotations(
    layout: Rot6dLayout, decode: Callable[[np.ndarray], np.ndarray]
) -> None:
    raw = np.random.default_rng(6).normal(size=(2, 5, 6))
    R = rot6d_to_rotmat(rot6d_from_layout(torch.from_numpy(raw), layout)).numpy()
    for index in np.ndindex(2, 5):
        np.testing.assert_allclose(R[index], decode(raw[index]), rtol=0, atol=1e-13)


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
