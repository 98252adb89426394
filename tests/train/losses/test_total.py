"""Weights, presets and the total; fused and eager alike, in any batch size."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.prediction import HandPrediction, Prediction
from pipeline.batch import Batch
from train.losses.config import (
    AMT,
    HAWOR,
    PRESETS,
    TERMS,
    Distance,
    Impl,
    LossConfig,
    Preset,
    weights_of,
)
from train.losses.groups import eager_terms
from train.losses.inputs import (
    EAGER_TERMS,
    JOINT_TERMS,
    MESH_TERMS,
    MOTION_TERMS,
    OBJECT_TERMS,
    ROTATION_TERMS,
)
from train.losses.plan import LossPlan, MeshTarget, Weights, plan_losses, weights_on
from train.losses.total import LossTerms, together, total_loss

CPU = torch.device("cpu")
EVERY_TERM = LossConfig(**{name: 1.0 + k for k, name in enumerate(TERMS)})  # type: ignore[arg-type]


def plan(config: LossConfig = EVERY_TERM, dtype: torch.dtype = torch.float64) -> LossPlan:
    rest = torch.from_numpy(np.random.default_rng(9).normal(0, 0.1, (2, 16, 3))).to(dtype)
    made = plan_losses(config, CPU, rest)
    groups = tuple((group, replace(on, lam=on.lam.to(dtype))) for group, on in made.groups)
    weight = made.settings.joint_weight
    settings = replace(made.settings, joint_weight=None if weight is None else weight.to(dtype))
    return replace(made, groups=groups, settings=settings)


def by(impl: Impl, given: LossPlan) -> LossPlan:
    return replace(given, settings=replace(given.settings, impl=impl))


def weights_by_term(given: LossPlan) -> dict[str, Weights]:
    return {name: on for _, on in given.groups for name in on.names}


def make_batch(b: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    rng = np.random.default_rng(seed)

    def number(*shape: int, size: float = 1.0) -> Tensor:
        return torch.from_numpy(rng.normal(0, size, shape)).to(dtype)

    def mask(*shape: int) -> Tensor:
        return torch.from_numpy(rng.random(shape) < 0.7)

    K = torch.tensor([[300.0, 2.0, 64.0], [-3.0, 310.0, 60.0], [0.0, 0.0, 1.0]], dtype=dtype)
    turns = Rotation.random(b * 16, random_state=rng).as_matrix().reshape(b, 1, 16, 3, 3)
    return Batch(
        image=torch.zeros(b, 3, 128, 128),
        K=K.expand(b, 3, 3),
        A_input_from_frame=torch.eye(3)[:2].expand(b, 2, 3),
        R_input_from_cam=torch.eye(3).expand(b, 3, 3),
        joints_3d=number(b, 1, 21, 3, size=0.05) + torch.tensor([0, 0, 0.6], dtype=dtype),
        joint_valid=mask(b, 1, 21),
        theta_rotmat=torch.from_numpy(turns).to(dtype),
        beta=number(b, 1, 10),
        transl=number(b, 1, 3),
        has_joints=mask(b, 1),
        has_mano=mask(b, 1),
        has_beta=mask(b, 1),
        is_right=torch.ones(b, 1, dtype=torch.bool),
        mirrored=torch.zeros(b, dtype=torch.bool),
        object_id=torch.full((b,), -1),
        object_pose=torch.full((b, 3, 4), torch.nan, dtype=dtype),
        object_arti_rad=torch.full((b,), torch.nan, dtype=dtype),
        has_object=torch.zeros(b, dtype=torch.bool),
        joint_set=torch.ones(b, dtype=torch.int64),
        sample_id=torch.arange(b),
        is_real=torch.ones(b, dtype=torch.bool),
    )


def make_prediction(b: int, dtype: torch.dtype = torch.float64) -> HandPrediction:
    other = make_batch(b, 1, dtype)
    generator = torch.Generator().manual_seed(2)
    vertices = 0.1 * torch.randn(b, 1, 778, 3, generator=generator, dtype=dtype)
    return HandPrediction(
        joints_3d=other.joints_3d.requires_grad_(),
        vertices=(vertices + 0.5).requires_grad_(),
        theta_rotmat=other.theta_rotmat.requires_grad_(),
        theta_rot6d=torch.randn(b, 1, 16, 6, generator=generator, dtype=dtype).requires_grad_(),
        beta=other.beta.requires_grad_(),
    )


def make_mesh(b: int, dtype: torch.dtype = torch.float64) -> MeshTarget:
    generator = torch.Generator().manual_seed(3)
    return MeshTarget(
        vertices=0.1 * torch.randn(b, 1, 778, 3, generator=generator, dtype=dtype) + 0.5
    )


def of_hands(prediction: HandPrediction, *rest: Any) -> tuple[Tensor, LossTerms]:
    return total_loss(Prediction(hands=prediction), *rest)


def part(item: Any, where: slice) -> Any:
    values = {f.name: getattr(item, f.name) for f in fields(item)}
    return type(item)(**{k: None if v is None else v[where] for k, v in values.items()})


def gradients(prediction: HandPrediction) -> dict[str, Tensor]:
    found = {f.name: getattr(prediction, f.name) for f in fields(prediction)}
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in found.items()
        if value is not None
    }


def test_every_term_has_a_weight_and_every_weight_a_term() -> None:
    assert set(TERMS) == {*JOINT_TERMS, *MESH_TERMS, *ROTATION_TERMS, *EAGER_TERMS} - {"contact"}
    for weights in PRESETS.values():
        assert set(weights) <= set(TERMS)


def test_the_total_is_the_weighted_sum_of_means() -> None:
    total, terms = of_hands(make_prediction(8), make_batch(8), make_mesh(8), plan())
    assert set(terms.names) == set(TERMS) - {*OBJECT_TERMS, *MOTION_TERMS}
    means = dict(zip(terms.names, terms.values.mean(1).tolist(), strict=True))
    expected = sum((1.0 + TERMS.index(name)) * mean for name, mean in means.items())
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert not terms.values.requires_grad


def test_a_batch_is_the_mean_of_its_halves() -> None:
    items = (make_prediction(8), make_batch(8), make_mesh(8))
    whole, _ = of_hands(*items, plan())
    prediction, batch, mesh = items
    halves = [
        of_hands(
            part(prediction, where), batch.rows(where.start, where.stop), part(mesh, where), plan()
        )[0].item()
        for where in (slice(0, 4), slice(4, 8))
    ]
    assert whole.item() == pytest.approx(sum(halves) / 2, rel=1e-12)


def test_triton_and_eager_agree() -> None:
    found = []
    for impl in (Impl.eager, Impl.triton):
        prediction = make_prediction(3, torch.float32)
        chosen = by(impl, plan(dtype=torch.float32))
        batch, mesh = make_batch(3, dtype=torch.float32), make_mesh(3, torch.float32)
        total, terms = of_hands(prediction, batch, mesh, chosen)
        torch.autograd.backward(total)
        found.append((total.detach(), terms, gradients(prediction)))
    (total, terms, grads), (other, others, other_grads) = found
    torch.testing.assert_close(other, total)
    torch.testing.assert_close(others.values, terms.values)
    assert torch.equal(others.seen, terms.seen)
    assert others.names == terms.names
    for name, gradient in grads.items():
        torch.testing.assert_close(other_grads[name], gradient)


@pytest.mark.parametrize("impl", [Impl.triton, Impl.eager])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by Dynamo
def test_the_total_is_one_graph(impl: Impl) -> None:
    """As a GPU compiles it; the backend here only traces, which needs no compiler."""
    torch.compiler.reset()
    compiled = torch.compile(of_hands, fullgraph=True, dynamic=False, backend="aot_eager")
    chosen = by(impl, plan(dtype=torch.float32))
    items = make_batch(2, dtype=torch.float32), make_mesh(2, torch.float32), chosen
    found = []
    for of in (of_hands, compiled):
        prediction = make_prediction(2, torch.float32)
        total, terms = of(prediction, *items)
        torch.autograd.backward(total)
        found.append((total.detach(), terms, gradients(prediction)))
    (total, terms, grads), (other, others, other_grads) = found
    torch.testing.assert_close(other, total)
    torch.testing.assert_close(others.values, terms.values)
    assert others.names == terms.names
    for name, gradient in grads.items():
        torch.testing.assert_close(other_grads[name], gradient)


def test_nan_under_a_mask_costs_neither_value_nor_gradient() -> None:
    batch = make_batch(4)
    nothing = torch.zeros(4, 1, dtype=torch.bool)
    batch = replace(batch, has_joints=nothing, has_mano=nothing, has_beta=nothing)
    names = ("joints_3d", "theta_rotmat", "beta", "K")
    poisoned: dict[str, Any] = {
        name: torch.full_like(getattr(batch, name), torch.nan) for name in names
    }
    prediction = make_prediction(4)
    total, terms = of_hands(prediction, replace(batch, **poisoned), make_mesh(4), plan())
    torch.autograd.backward(total)
    assert total.item() == 0.0
    assert not terms.seen.any()
    for name, gradient in gradients(prediction).items():
        assert (gradient == 0).all(), name


def test_the_samples_that_a_term_saw_are_told() -> None:
    batch = replace(
        make_batch(4),
        has_joints=torch.tensor([[True], [True], [True], [False]]),
        joint_valid=torch.ones(4, 1, 21, dtype=torch.bool),
        has_mano=torch.tensor([[True], [False], [False], [False]]),
    )
    _, terms = of_hands(make_prediction(4), batch, None, plan())
    seen = dict(zip(terms.names, terms.seen.tolist(), strict=True))
    assert seen["joints_abs"] == [True, True, True, False]
    assert seen["theta"] == [True, False, False, False]
    assert "vertices" not in seen


def test_what_is_not_predicted_has_no_term() -> None:
    only_joints = HandPrediction(joints_3d=make_prediction(4).joints_3d)
    _, terms = of_hands(only_joints, make_batch(4), None, plan())
    assert set(terms.names) == set(JOINT_TERMS)
    with pytest.raises(ValueError, match="loss terms can be minimised, got 0"):
        of_hands(only_joints, make_batch(4), None, plan(LossConfig(preset=Preset.mano_simple)))


def test_weights_given_replace_the_presets() -> None:
    config = LossConfig(preset=Preset.hamer, theta=0.0, bone_length=3.0)
    weights = weights_of(config)
    assert weights == {
        "joints_rel": pytest.approx(8.4),
        "joints_2d": pytest.approx(1.68),
        "beta": pytest.approx(0.04),
        "bone_length": 3.0,
    }
    found = weights_by_term(plan_losses(config, CPU))
    assert found["joints_rel"].names == ("joints_rel", "joints_2d", "bone_length")


def test_the_preset_of_hamer_is_its_sum_over_a_batch_of_8() -> None:
    """HaMeR: sums of absolute or squared differences over all items, weighted as in its config."""
    batch = make_batch(8)
    everything = torch.ones(8, 1, dtype=torch.bool)
    batch = replace(
        batch,
        joint_valid=torch.ones(8, 1, 21, dtype=torch.bool),
        has_joints=everything,
        has_mano=everything,
        has_beta=everything,
    )
    prediction = make_prediction(8)
    config = plan(LossConfig(preset=Preset.hamer))
    total, _ = of_hands(prediction, batch, make_mesh(8), config)

    expected = 0.0
    for b in range(8):
        p, g = prediction.joints_3d[b, 0].detach().numpy(), batch.joints_3d[b, 0].numpy()
        expected += 0.05 * np.abs((p - p[:1]) - (g - g[:1])).sum()
        K = batch.K[b].numpy()
        uv = [(x @ K.T)[:, :2] / x[:, 2:] / 128 - 0.5 for x in (p, g)]
        expected += 0.01 * np.abs(uv[0] - uv[1]).sum()
        assert prediction.theta_rotmat is not None
        assert prediction.beta is not None
        turned = prediction.theta_rotmat[b, 0].detach().numpy() - batch.theta_rotmat[b, 0].numpy()
        expected += 0.001 * (turned[:1] ** 2).sum() + 0.001 * (turned[1:] ** 2).sum()
        shape = prediction.beta[b, 0].detach().numpy() - batch.beta[b, 0].numpy()
        expected += 0.0005 * (shape**2).sum()
    assert total.item() == pytest.approx(expected, rel=1e-7)  # weights are float32


def test_joint_weights_and_distances_reach_the_terms() -> None:
    tips = [float(j in (4, 8, 12, 16, 20)) for j in range(21)]
    off = {"joints_rel": 0.0, "joints_2d": 0.0, "theta": 0.0, "beta": 0.0, "vertices": 0.0}
    config = LossConfig(joints_abs=1.0, joint_weights=tips, distance=Distance.l2, **off)  # type: ignore[arg-type]
    batch = replace(
        make_batch(2),
        joint_valid=torch.ones(2, 1, 21, dtype=torch.bool),
        has_joints=torch.ones(2, 1, dtype=torch.bool),
    )
    prediction = make_prediction(2)
    total, _ = of_hands(prediction, batch, None, plan(config))
    apart = (prediction.joints_3d - batch.joints_3d)[:, 0, [4, 8, 12, 16, 20]].detach().numpy()
    assert total.item() == pytest.approx(np.linalg.norm(apart, axis=-1).mean(), rel=1e-6)


def test_terms_of_ones_own_are_summed_with_their_weights() -> None:
    weights = weights_on(CPU, AMT, tuple(AMT))
    mask = torch.tensor([True, False])
    found = {name: (torch.tensor([1.0 + k, 0.0]), mask) for k, name in enumerate(AMT)}
    total, terms = together([(weights.names, eager_terms(found, weights.names, weights.lam))])
    expected = sum(weight * (1.0 + k) / 2 for k, weight in enumerate(AMT.values()))
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert terms.names == tuple(AMT)
    assert terms.seen[:, 0].all()
    assert not terms.seen[:, 1].any()
    assert set(HAWOR) == {"keypoint", "mano", "temporal", "camera", "reprojection"}


def test_learned_weights_are_the_formula_and_have_its_gradient() -> None:
    s = torch.linspace(-1, 1, len(TERMS), dtype=torch.float64).requires_grad_()
    items = (make_prediction(4), make_batch(4), make_mesh(4))
    total, terms = of_hands(*items, by(Impl.triton, plan()), s)
    means, seen = terms.values.mean(1), terms.seen.double().mean(1)
    expected = 0.0
    for k, name in enumerate(terms.names):
        own = s[TERMS.index(name)].item()
        weight = 1.0 + TERMS.index(name)
        expected += weight * np.exp(-own) * means[k].item() + own * seen[k].item()
    assert total.item() == pytest.approx(expected, rel=1e-12)
    torch.autograd.gradcheck(lambda given: of_hands(*items, plan(), given)[0], (s,))


def test_learned_weights_of_terms_without_labels_stay() -> None:
    batch = make_batch(4)
    nothing = torch.zeros(4, 1, dtype=torch.bool)
    batch = replace(batch, has_mano=nothing)
    s = torch.zeros(len(TERMS), dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(of_hands(make_prediction(4), batch, make_mesh(4), plan(), s)[0])
    assert s.grad is not None
    assert s.grad[TERMS.index("theta")] == 0.0
    assert s.grad[TERMS.index("joints_rel")] != 0.0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"theta": -1.0}, r"loss.theta must be finite and not negative, got -1"),
        ({"joints_pa": float("nan")}, r"loss.joints_pa must be a finite number, got nan"),
        ({"uncertainty": True, "impl": Impl.triton}, r"use loss.impl=eager or auto"),
        ({"smooth_m": 0.0}, r"loss.smooth_m must be positive, got 0"),
        ({"joint_weights": [1.0]}, r"must have 21 numbers, the wrist's first, or none; got 1"),
        ({"joint_weights": [-1.0] * 21}, r"loss.joint_weights must be finite and not negative"),
    ],
)
def test_bad_values_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LossConfig(**given)
