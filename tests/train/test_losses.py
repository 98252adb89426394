"""Loss terms against loops, under masks, and in any batch size."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.prediction import HandPrediction
from pipeline.batch import Batch
from train.losses import terms
from train.losses.config import LossConfig
from train.losses.total import MeshTarget, total_loss

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def points(b: int = 3, h: int = 2, j: int = 21) -> Tensor:
    return 0.1 * draw(b, h, j, 3) + torch.tensor([0.0, 0.0, 0.6], dtype=torch.float64)


def mask(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR) < 0.7


def camera(b: int) -> Tensor:
    K = torch.tensor([[300.0, 2.0, 64.0], [-3.0, 310.0, 60.0], [0.0, 0.0, 1.0]]).double()
    return K.expand(b, 3, 3)


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def test_joints_abs_is_the_mean_l1_of_valid_points() -> None:
    pred, target, valid = points(), points(), mask(3, 2, 21)
    for b, value in enumerate(terms.joints_abs(pred, target, valid)):
        distances = [
            sum(abs(float(pred[b, h, j, c] - target[b, h, j, c])) for c in range(3))
            for h in range(2)
            for j in range(21)
            if valid[b, h, j]
        ]
        assert float(value) == pytest.approx(mean_of(distances), rel=1e-12)


def test_joints_rel_moves_both_wrists_to_the_origin() -> None:
    pred, target, valid = points(), points(), mask(3, 2, 21)
    valid[0, 0, 0] = False  # this hand has no root, so it has no relative joints
    for b, value in enumerate(terms.joints_rel(pred, target, valid)):
        distances = []
        for h in range(2):
            if not valid[b, h, 0]:
                continue
            for j in range(21):
                if valid[b, h, j]:
                    p = (pred[b, h, j] - pred[b, h, 0]).tolist()
                    t = (target[b, h, j] - target[b, h, 0]).tolist()
                    distances.append(sum(abs(x - y) for x, y in zip(p, t, strict=True)))
        assert float(value) == pytest.approx(mean_of(distances), rel=1e-12)


def test_joints_2d_uses_all_of_k() -> None:
    pred, target, valid = points(), points(), mask(3, 2, 21)
    K = camera(3)
    fx, skew, cx, other, fy, cy = 300.0, 2.0, 64.0, -3.0, 310.0, 60.0
    for b, value in enumerate(terms.joints_2d(pred, target, valid, K, 128)):
        distances = []
        for h in range(2):
            for j in range(21):
                if not valid[b, h, j]:
                    continue
                pixels = []
                for x, y, z in (pred[b, h, j].tolist(), target[b, h, j].tolist()):
                    pixels.append((fx * x / z + skew * y / z + cx, other * x / z + fy * y / z + cy))
                (u, v), (s, t) = pixels
                distances.append((abs(u - s) + abs(v - t)) / 128)
        assert float(value) == pytest.approx(mean_of(distances), rel=1e-12)


def test_joints_2d_is_finite_behind_the_camera() -> None:
    pred = points().clone()
    pred[0, 0, 0, 2] = -0.5
    pred[0, 0, 1, 2] = 0.0
    pred.requires_grad_()
    valid = torch.ones(3, 2, 21, dtype=torch.bool)
    torch.autograd.backward(terms.joints_2d(pred, points(), valid, camera(3), 128).sum())
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()
    assert pred.grad[0, 0, 0, 2] == 0.0


def test_theta_is_four_times_one_minus_cosine() -> None:
    angles = torch.tensor([0.3, -1.1, 3.0], dtype=torch.float64)
    turned = torch.eye(3, dtype=torch.float64).repeat(3, 1, 16, 1, 1)
    for b, angle in enumerate(angles.tolist()):
        c, s = math.cos(angle), math.sin(angle)
        turned[b, 0, :, :2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    rest = torch.eye(3, dtype=torch.float64).expand(3, 1, 16, 3, 3)
    valid = torch.tensor([[True], [True], [False]])
    value = terms.theta(turned, rest, valid)
    expected = [4 * (1 - math.cos(0.3)), 4 * (1 - math.cos(1.1)), 0.0]
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12)


def test_beta_is_the_mean_square() -> None:
    pred, target = draw(2, 2, 10), draw(2, 2, 10)
    valid = torch.tensor([[True, False], [True, True]])
    value = terms.beta(pred, target, valid)
    square = (pred - target).numpy() ** 2
    np.testing.assert_allclose(value.numpy(), [square[0, 0].mean(), square[1].mean()], rtol=1e-12)


def test_vertices_are_relative_to_their_own_root() -> None:
    pred, target = points(2, 1, 778), points(2, 1, 778)
    valid = torch.ones(2, 1, dtype=torch.bool)
    value = terms.vertices_rel(pred, target, pred[:, :, 5], target[:, :, 7], valid)
    p = (pred - pred[:, :, 5:6]).numpy()
    t = (target - target[:, :, 7:8]).numpy()
    np.testing.assert_allclose(value.numpy(), np.abs(p - t).sum(-1).mean((1, 2)), rtol=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    valid = mask(2, 1, 5)
    valid[:, :, 0] = True
    target, K = points(2, 1, 5), camera(2)
    pred = points(2, 1, 5).requires_grad_()
    torch.autograd.gradcheck(lambda p: terms.joints_abs(p, target, valid), (pred,))
    torch.autograd.gradcheck(lambda p: terms.joints_rel(p, target, valid), (pred,))
    torch.autograd.gradcheck(lambda p: terms.joints_2d(p, target, valid, K, 128), (pred,))


# --- the total ------------------------------------------------------------------------------------


def make_batch(b: int) -> Batch:
    return Batch(
        image=torch.zeros(b, 3, 128, 128),
        K=camera(b),
        A_input_from_frame=torch.eye(3).double()[:2].expand(b, 2, 3),
        R_input_from_cam=torch.eye(3).double().expand(b, 3, 3),
        joints_3d=points(b, 1),
        joint_valid=mask(b, 1, 21),
        theta_rotmat=draw(b, 1, 16, 3, 3),
        beta=draw(b, 1, 10),
        transl=draw(b, 1, 3),
        has_joints=mask(b, 1),
        has_mano=mask(b, 1),
        has_beta=mask(b, 1),
        is_right=torch.ones(b, 1, dtype=torch.bool),
        mirrored=torch.zeros(b, dtype=torch.bool),
        joint_set=torch.ones(b, dtype=torch.int64),
        sample_id=torch.arange(b),
        is_real=torch.ones(b, dtype=torch.bool),
    )


def make_prediction(b: int) -> HandPrediction:
    return HandPrediction(
        joints_3d=points(b, 1).requires_grad_(),
        vertices=points(b, 1, 778).requires_grad_(),
        theta_rotmat=draw(b, 1, 16, 3, 3).requires_grad_(),
        beta=draw(b, 1, 10).requires_grad_(),
    )


def part(item: Batch | HandPrediction | MeshTarget, where: slice) -> dict[str, Tensor | None]:
    out: dict[str, Tensor | None] = {}
    for field in fields(item):
        value = getattr(item, field.name)
        out[field.name] = None if value is None else value[where]
    return out


def test_a_batch_is_the_mean_of_its_halves() -> None:
    batch, prediction, mesh = (
        make_batch(8),
        make_prediction(8),
        MeshTarget(vertices=points(8, 1, 778)),
    )
    whole, _ = total_loss(prediction, batch, mesh, LossConfig())
    halves = [
        total_loss(
            HandPrediction(**part(prediction, where)),  # type: ignore[arg-type]
            Batch(**part(batch, where)),  # type: ignore[arg-type]
            MeshTarget(**part(mesh, where)),  # type: ignore[arg-type]
            LossConfig(),
        )[0]
        for where in (slice(0, 4), slice(4, 8))
    ]
    assert whole.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-12)


def test_nan_under_a_mask_costs_neither_value_nor_gradient() -> None:
    batch, mesh = make_batch(4), MeshTarget(vertices=points(4, 1, 778))
    nothing = torch.zeros(4, 1, dtype=torch.bool)
    batch = replace(batch, has_joints=nothing, has_mano=nothing, has_beta=nothing)
    poisoned = replace(
        batch,
        joints_3d=torch.full_like(batch.joints_3d, float("nan")),
        theta_rotmat=torch.full_like(batch.theta_rotmat, float("nan")),
        beta=torch.full_like(batch.beta, float("nan")),
    )
    prediction = make_prediction(4)
    loss, seen = total_loss(prediction, poisoned, mesh, LossConfig())
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert all(float(share) == 0.0 for share in seen.seen.values())
    for field in fields(prediction):
        value = getattr(prediction, field.name)
        assert value is None or value.grad is None or (value.grad == 0).all(), field.name


def test_the_share_of_samples_seen_is_reported() -> None:
    batch = make_batch(4)
    batch = replace(
        batch,
        has_joints=torch.tensor([[True], [True], [True], [False]]),
        joint_valid=torch.ones(4, 1, 21, dtype=torch.bool),
        has_mano=torch.tensor([[True], [False], [False], [False]]),
    )
    _, seen = total_loss(make_prediction(4), batch, None, LossConfig())
    assert float(seen.seen["joints_abs"]) == 0.75
    assert float(seen.seen["theta"]) == 0.25
    assert "vertices" not in seen.seen


def test_a_weight_of_zero_switches_a_term_off() -> None:
    batch, prediction = make_batch(4), make_prediction(4)
    only = LossConfig(
        joints_abs=2.0, joints_rel=0.0, joints_2d=0.0, theta=0.0, beta=0.0, vertices=0.0
    )
    loss, out = total_loss(prediction, batch, None, only)
    assert loss.item() == pytest.approx(2.0 * float(out.values["joints_abs"]), rel=1e-12)


def test_a_bad_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.theta must be finite and not negative, got -1"):
        LossConfig(theta=-1.0)
