"""Every loss term against its oracle, finite differences, masks and halves of a batch."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.geometry.rotation import axis_angle_to_rotmat
from tests.reference import losses, losses_scene
from tests.train.losses.cases import CASES, Arguments, B, Case, call, mask_of
from train.losses.terms import contact, joints, mano, objects, physics, regularizers

BATCH_WIDE = ("batch_variance",)
"""Depend on the whole batch by definition."""
MANY = 600
"""Numbers of a leaf from which on gradients are checked along random directions only."""
each = pytest.mark.parametrize("case", CASES, ids=str)


def as_text(case: Case) -> Arguments:
    return {name: getattr(value, "name", value) for name, value in case.options.items()}


def leaves_of(case: Case, arguments: Arguments) -> dict[str, Tensor]:
    return {name: torch.from_numpy(arguments[name]).requires_grad_() for name in case.leaves}


def part(case: Case, arguments: Arguments, where: slice) -> Arguments:
    return {
        name: value if name in case.shared or not isinstance(value, np.ndarray) else value[where]
        for name, value in arguments.items()
    }


@each
@pytest.mark.parametrize("seed", [0, 1])
def test_a_term_is_its_oracle(case: Case, seed: int) -> None:
    arguments = case.draw(np.random.default_rng(seed))
    value = call(case, arguments)
    expected = case.oracle(**arguments, **as_text(case))
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9, atol=1e-14)
    assert value.dtype is torch.float64
    assert value.shape == (B,)


@each
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    arguments = case.draw(np.random.default_rng(2))
    leaves = leaves_of(case, arguments)
    many = sum(leaf.numel() for leaf in leaves.values()) > MANY
    torch.autograd.gradcheck(
        lambda *given: call(case, arguments, **dict(zip(leaves, given, strict=True))),
        tuple(leaves.values()),
        fast_mode=many,
    )


@each
def test_a_batch_is_its_halves(case: Case) -> None:
    arguments = case.draw(np.random.default_rng(3))
    whole = call(case, arguments).mean().item()
    halves = [
        call(case, part(case, arguments, where)).mean().item()
        for where in (slice(0, B // 2), slice(B // 2, B))
    ]
    if case.term.__name__ in BATCH_WIDE:
        assert whole != pytest.approx(sum(halves) / 2, rel=1e-3)
    else:
        assert whole == pytest.approx(sum(halves) / 2, rel=1e-12)


@each
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_under_a_mask_changes_nothing(case: Case, poison: float) -> None:
    found: list[tuple[Tensor, list[Tensor | None]]] = []
    arguments = case.draw(np.random.default_rng(4))
    poisoned = dict(arguments)
    for name in case.masks:
        mask, values = mask_of(case, arguments, name), arguments[name]
        fill = -1 if values.dtype.kind == "i" else poison
        poisoned[name] = np.where(mask, values, fill)
        assert not np.broadcast_to(mask, values.shape).all()
    for given in (arguments, poisoned):
        leaves = leaves_of(case, given)
        value = call(case, given, **leaves)
        torch.autograd.backward(value.sum())
        found.append((value.detach(), [leaf.grad for leaf in leaves.values()]))
    (value, gradients), (other, others) = found
    assert torch.equal(value, other)
    assert value[-1] == 0.0 or case.term.__name__ in BATCH_WIDE
    for name, gradient, same in zip(case.leaves, gradients, others, strict=True):
        assert gradient is not None
        assert same is not None
        assert torch.equal(gradient, same)
        is_valid = torch.from_numpy(mask_of(case, arguments, name)).expand(gradient.shape)
        assert (gradient[~is_valid] == 0).all()


@each
def test_what_is_not_finite_shows_in_its_sample_alone(case: Case) -> None:
    arguments = case.draw(np.random.default_rng(5))
    before = call(case, arguments)
    name = case.leaves[0]
    mask = np.broadcast_to(mask_of(case, arguments, name), arguments[name].shape)
    sample = int(np.flatnonzero(mask.reshape(B, -1).any(1))[0])
    arguments[name][sample] = np.where(mask[sample], np.nan, 0.0)
    value = call(case, arguments)
    assert not value[sample].isfinite()
    others = np.arange(B) != sample
    if case.term.__name__ not in BATCH_WIDE:
        assert torch.equal(value[others], before[others])


# --- singular points ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bounded:
    value: Tensor
    gradient: Tensor


def at(term: str, point: Tensor, *others: Tensor | float) -> Bounded:
    module = next(m for m in (joints, mano, objects) if hasattr(m, term))
    point = point.clone().requires_grad_()
    value = getattr(module, term)(point, *others)
    torch.autograd.backward(value.sum())
    assert point.grad is not None
    assert value.isfinite().all()
    assert point.grad.isfinite().all()
    return Bounded(value=value.detach(), gradient=point.grad)


def half_turns() -> Tensor:
    """Return 16 rotations by exactly 180 degrees, signed permutations among them."""
    axes = np.concatenate([np.eye(3), np.random.default_rng(0).normal(size=(13, 3))])
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    return torch.from_numpy(2 * axes[:, :, None] * axes[:, None] - np.eye(3))


def test_axis_angles_a_full_turn_apart_are_one_rotation() -> None:
    """Their difference as numbers is 2 pi: what a loss on them would punish."""
    once = torch.tensor([[[[0.3, -0.2, 0.5]]]], dtype=torch.float64).expand(1, 1, 16, 3)
    length = once.norm(dim=-1, keepdim=True)
    again = once * (1 - 2 * math.pi / length)
    valid = torch.ones(1, 1, dtype=torch.bool)
    found = mano.theta(axis_angle_to_rotmat(once), axis_angle_to_rotmat(again), valid)
    assert (once - again).norm(dim=-1).min() == pytest.approx(2 * math.pi)
    assert found.item() == pytest.approx(0, abs=1e-12)


def test_angles_of_180_degrees_are_bounded() -> None:
    eye = torch.eye(3, dtype=torch.float64).expand(1, 1, 16, 3, 3)
    all_valid = torch.ones(1, 1, dtype=torch.bool)
    for turned in (half_turns()[None, None], -eye, torch.zeros_like(eye)):
        found = at("theta_geodesic", turned, eye, all_valid)
        assert found.gradient.abs().max() <= 1.0
    found = at("theta_geodesic", half_turns()[None, None], eye, all_valid)
    assert found.value.item() == pytest.approx(math.pi, abs=1e-7)


def test_equal_rotations_have_no_gradient() -> None:
    turned = torch.from_numpy(Rotation.random(16, random_state=0).as_matrix())[None, None]
    all_valid = torch.ones(1, 1, dtype=torch.bool)
    assert at("theta", turned, turned, all_valid).gradient.abs().max() == 0.0
    found = at("theta_geodesic", turned, turned, all_valid)
    assert found.value.item() < 1e-7
    assert found.gradient.abs().max() <= 1.0


def line(noise_m: float) -> Tensor:
    """Return a hand of joints in a row, near it or on it."""
    rng = np.random.default_rng(1)
    along = np.linspace(0, 0.1, 21)[:, None] * np.array([0.6, 0.0, 0.8])
    return torch.from_numpy(along + rng.normal(0, noise_m, (21, 3)) + [0, 0, 0.5])[None, None]


@pytest.mark.parametrize("noise_m", [0.0, 1e-9, 3e-3])
def test_alignment_near_a_line_is_bounded(noise_m: float) -> None:
    """The gradient of the distance is at most the scale, which is near 1 here, over the joints."""
    valid = torch.ones(1, 1, 21, dtype=torch.bool)
    for target in (line(0.0), line(3e-3)[:, :, torch.arange(20, -1, -1)], half_hand()):
        found = at("joints_pa", line(noise_m), target, valid)
        assert found.gradient.norm(dim=-1).sum() <= 2.0
        expected = np.linalg.norm(target.numpy() - target.numpy().mean(2, keepdims=True)) / 21**0.5
        assert found.value.item() <= expected + 1e-9  # a scale of 0 is never better


def half_hand() -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).normal(0, 0.05, (1, 1, 21, 3)))


def test_alignment_of_a_point_is_bounded() -> None:
    valid = torch.ones(1, 1, 21, dtype=torch.bool)
    point = torch.full((1, 1, 21, 3), 0.5, dtype=torch.float64)
    for pred in (point, point + 1e-6 * half_hand()):
        assert at("joints_pa", pred, half_hand(), valid).gradient.abs().max() == 0.0
    assert at("joints_pa", half_hand(), point, valid).value.item() == pytest.approx(0, abs=1e-15)


def test_a_mirrored_hand_is_not_aligned_by_a_reflection() -> None:
    valid = torch.ones(1, 1, 21, dtype=torch.bool)
    mirrored = half_hand() * torch.tensor([-1.0, 1.0, 1.0])
    assert joints.joints_pa(mirrored, half_hand(), valid).item() > 0.02
    turned = half_hand() * torch.tensor([-1.0, -1.0, 1.0]) * 1.3 + 0.2
    assert joints.joints_pa(turned, half_hand(), valid).item() == pytest.approx(0, abs=1e-12)


def test_bones_of_no_length_are_bounded() -> None:
    valid = torch.ones(1, 1, 21, dtype=torch.bool)
    point = torch.full((1, 1, 21, 3), 0.5, dtype=torch.float64)
    for term in ("bone_length", "bone_direction"):
        for pred, target in ((point, half_hand()), (half_hand(), point), (point, point)):
            found = at(term, pred, target, valid)
            assert found.gradient.norm(dim=-1).max() <= 5 / joints.MIN_BONE_M / 20


def test_projections_behind_the_camera_are_finite() -> None:
    valid = torch.ones(1, 1, 21, dtype=torch.bool)
    K = torch.tensor([[[300.0, 2.0, 64.0], [-3.0, 310.0, 60.0], [0.0, 0.0, 1.0]]]).double()
    pred = half_hand() + torch.tensor([0.0, 0.0, 0.5])
    pred[0, 0, 0, 2], pred[0, 0, 1, 2] = -0.5, 0.0
    found = at("joints_2d", pred, half_hand() + 0.5, valid, K, 128)
    assert found.gradient[0, 0, 0, 2] == 0.0
    assert found.gradient[0, 0, 1, 2] == 0.0
    assert found.gradient[0, 0, 2, 2] != 0.0


def test_equal_points_have_no_gradient() -> None:
    R = torch.eye(3, dtype=torch.float64)[None, None]
    t, some = torch.zeros(1, 1, 3).double(), torch.ones(1, 1, dtype=torch.bool)
    points = half_hand()
    for term in (objects.add, objects.add_s):
        pred_t = t.clone().requires_grad_()
        value = term(points, R, pred_t, R, t, some)
        torch.autograd.backward(value.sum())
        assert value.item() == 0.0
        assert pred_t.grad is not None
        assert (pred_t.grad == 0).all()


def test_a_splay_of_90_degrees_is_finite() -> None:
    straight_up = torch.from_numpy(Rotation.from_euler("ZYX", [0.3, math.pi / 2, 0.2]).as_matrix())
    R = straight_up.requires_grad_()
    angles = mano.bend_splay_twist(R)
    torch.autograd.backward(angles.sum())
    assert angles[1].item() == pytest.approx(math.pi / 2, abs=1e-7)
    assert R.grad is not None
    assert R.grad.isfinite().all()


# --- what is no term ------------------------------------------------------------------------------


def test_the_nearest_equivalent_pose_is_the_oracles() -> None:
    rng = np.random.default_rng(6)
    case = next(c for c in CASES if c.term is objects.object_rotation)
    arguments = case.draw(rng)
    target_t = rng.normal(size=(B, 3, 3))
    given = {name: torch.from_numpy(value) for name, value in arguments.items()}
    R, t = objects.nearest_equivalent(**given, target_t=torch.from_numpy(target_t))
    expected_R, expected_t = losses_scene.nearest_equivalent(**arguments, target_t=target_t)
    valid = arguments["valid"]
    np.testing.assert_allclose(R.numpy()[valid], expected_R[valid], atol=1e-12)
    np.testing.assert_allclose(t.numpy()[valid], expected_t[valid], atol=1e-12)


def test_signed_distances_are_the_oracles() -> None:
    case = next(c for c in CASES if c.term is physics.sdf_penetration)
    arguments = case.draw(np.random.default_rng(7))
    arguments["row"] = np.abs(arguments["row"])
    del arguments["valid"]
    value = physics.signed_distance(**{k: torch.from_numpy(v) for k, v in arguments.items()})
    expected = losses_scene.signed_distance(**arguments)
    np.testing.assert_allclose(value.numpy(), expected, atol=1e-12)


def test_forces_are_the_oracles_and_stay_in_the_cone() -> None:
    rng = np.random.default_rng(8)
    normals = rng.normal(size=(B, 8, 3))
    normals[0, 0] = [0, 0, -2]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    given = (rng.random((B, 8, 6)), normals, 1 + rng.random(B))
    weights, axes, strength = (torch.from_numpy(values) for values in given)
    forces = physics.friction_cone_forces(weights, axes, strength)
    np.testing.assert_allclose(forces.numpy(), losses_scene.friction_cone_forces(*given))
    along = (forces.numpy() * normals).sum(-1)
    across = np.linalg.norm(forces.numpy() - along[..., None] * normals, axis=-1)
    assert (across <= physics.FRICTION * along + 1e-12).all()


def test_soft_contact_and_spectral_excess_are_the_oracles() -> None:
    rng = np.random.default_rng(9)
    distance = rng.random((B, 2, 50)) * 0.05
    soft = contact.soft_contact(torch.from_numpy(distance))
    np.testing.assert_allclose(soft.numpy(), losses_scene.soft_contact(distance), atol=1e-15)
    gamma = torch.from_numpy(rng.normal(0, 3, 12)).requires_grad_()
    excess = regularizers.spectral_excess(gamma, 2.0)
    expected = losses_scene.spectral_excess(gamma.detach().numpy(), 2.0)
    assert excess.item() == pytest.approx(float(expected), rel=1e-12)
    torch.autograd.gradcheck(lambda g: regularizers.spectral_excess(g, 2.0), (gamma,))


def test_samples_that_are_all_alike_have_no_gradient_but_a_cost() -> None:
    features = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    value = regularizers.batch_variance(features, torch.ones(5, dtype=torch.bool))
    torch.autograd.backward(value.sum())
    assert value[0].item() == pytest.approx(1 - regularizers.VARIANCE_EPS**0.5)
    assert features.grad is not None
    assert features.grad.abs().max() == 0.0


def test_short_bones_are_the_oracles() -> None:
    """Bones under a millimetre point nowhere in full."""
    case = next(c for c in CASES if c.term is joints.bone_direction)
    arguments = case.draw(np.random.default_rng(10))
    for child, parent, size in ((7, 6, 4e-4), (12, 11, 1e-5), (1, 0, 9e-4)):
        arguments["pred"][:, :, child] = arguments["pred"][:, :, parent] + size
    value = call(case, arguments)
    np.testing.assert_allclose(value.numpy(), losses.bone_direction(**arguments), rtol=1e-9)


def test_angles_are_the_oracles() -> None:
    turned = Rotation.random(200, random_state=11).as_matrix().reshape(2, 100, 3, 3)
    angle = mano.geodesic(*torch.from_numpy(turned))
    np.testing.assert_allclose(angle.numpy(), losses.geodesic(*turned), rtol=1e-9)
    found = mano.bend_splay_twist(torch.from_numpy(turned))
    np.testing.assert_allclose(found.numpy(), losses.bend_splay_twist(turned), atol=1e-9)
