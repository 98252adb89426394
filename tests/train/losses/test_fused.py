"""The loss kernels against float64 autograd: interpreted on a CPU, with few samples; else compiled.

Bar: their error is at most twice that of the same terms in float32 eager, or 1e-6 of the largest
value of the term.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tests.strategies  # noqa: F401 - loads the profile
from model.geometry.rotation import rot6d_to_rotmat
from train.losses.config import Distance, Impl
from train.losses.groups import joint_losses, mesh_losses, rotation_losses
from train.losses.inputs import (
    JOINT_TERMS,
    MESH_TERMS,
    ROTATION_TERMS,
    ContactInputs,
    GroupLoss,
    JointInputs,
    MeshInputs,
    RotationInputs,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []  # there, all of it is for the GPU
FLOOR = 1e-6
BF16_ULP = 2.0**-7
"""The interpreter truncates to bfloat16: one unit in the last place, relative to the value."""
Compute = Callable[[Any, tuple[str, ...], Tensor, Impl], GroupLoss]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How inputs are drawn."""

    num: int
    hands: int
    seed: int
    dtype: torch.dtype
    labels: str
    """Which items have one: some, all, none."""
    contiguous: bool
    coincident: bool
    """Predictions are the labels."""
    behind: bool
    """Some points are behind the camera or on its plane."""
    kind: Distance
    upstream: float


SHAPES = st.builds(
    Shape,
    num=st.integers(1, 3),
    hands=st.integers(1, 2),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    labels=st.sampled_from(["some", "some", "all", "none"]),
    contiguous=st.booleans(),
    coincident=st.sampled_from([False, False, True]),
    behind=st.booleans(),
    kind=st.sampled_from(list(Distance)),
    upstream=st.sampled_from([1.0, -0.5]),
)


class RandomTensors:
    """Draws tensors of a shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.generator = torch.Generator().manual_seed(shape.seed)

    def numbers(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator)

    def uniform(self, *size: int) -> Tensor:
        return torch.rand(*size, generator=self.generator)

    def given(self, values: Tensor) -> Tensor:
        """Return values as a network or loader gives them; every other number if not contiguous."""
        values = values.to(self.shape.dtype)
        if not self.shape.contiguous:
            values = torch.stack((values, torch.full_like(values, torch.nan)), -1)[..., 0]
        return values

    def mask(self, *size: int) -> Tensor:
        chance = {"some": 0.6, "all": 2.0, "none": -1.0}[self.shape.labels]
        return self.uniform(*size) < chance

    def near(self, values: Tensor, size: float) -> Tensor:
        moved = 0.0 if self.shape.coincident else size
        return self.given(values + moved * self.numbers(*values.shape))


def joint_inputs(shape: Shape) -> JointInputs:
    source = RandomTensors(shape)
    b, h = shape.num, shape.hands
    target = 0.05 * source.numbers(b, h, 21, 3) + torch.tensor([0.0, 0.0, 0.6])
    if shape.behind:
        target[0, 0, 3, 2], target[-1, -1, 4, 2] = -0.3, 0.0
    K = torch.tensor([[300.0, 2.0, 64.0], [-3.0, 310.0, 60.0], [0.0, 0.0, 1.0]])
    target = source.given(target)
    weight = source.uniform(21) * (torch.arange(21) != 5)
    pred = source.near(target, 0.02)
    if shape.seed % 3 == 0:
        pred[:, :, 7] = pred[:, :, 6] + 3e-4  # a bone without a direction of its own
    return JointInputs(
        pred=pred,
        target=target,
        valid=source.mask(b, h, 21),
        K=source.given(K.expand(b, 3, 3)),
        input_px=128,
        weight=weight if shape.seed % 2 else None,
        kind=shape.kind,
        smooth=0.02,
    )


@dataclass(frozen=True, kw_only=True)
class MeshAndContact:
    mesh: MeshInputs
    contact: ContactInputs


def mesh_inputs(shape: Shape) -> MeshAndContact:
    source = RandomTensors(shape)
    b, h = shape.num, shape.hands
    target, joints = source.numbers(b, h, 778, 3), source.numbers(b, h, 21, 3)
    target, joints = source.given(0.1 * target + 0.5), source.given(0.1 * joints + 0.5)
    return MeshAndContact(
        mesh=MeshInputs(
            pred=source.near(target, 0.01),
            target=target,
            pred_joints=source.near(joints, 0.01),
            target_joints=joints,
            valid=source.mask(b, h),
        ),
        contact=ContactInputs(
            logits=source.given(6 * source.numbers(b, h, 778)),
            target=source.given(source.uniform(b, h, 778) ** 4),
            valid=source.mask(b, h),
            alpha=0.3,
        ),
    )


def rotation_inputs(shape: Shape) -> RotationInputs:
    source = RandomTensors(shape)
    b, h = shape.num, shape.hands
    rot6d, beta = source.numbers(b, h, 16, 6), source.given(source.numbers(b, h, 10))
    target = rot6d_to_rotmat(rot6d)
    rot6d = rot6d if shape.coincident else rot6d + 0.5 * source.numbers(b, h, 16, 6)
    return RotationInputs(
        pred=source.given(rot6d_to_rotmat(rot6d)),
        target=source.given(target),
        valid=source.mask(b, h),
        pred_beta=source.near(beta, 1.0),
        target_beta=beta,
        has_beta=source.mask(b, h),
        rot6d=source.given(rot6d),
        present=source.mask(b, h),
    )


def mesh_compute(
    inputs: MeshAndContact, names: tuple[str, ...], lam: Tensor, impl: Impl
) -> GroupLoss:
    return mesh_losses(inputs.mesh, inputs.contact, names, lam, impl)


LEAVES = ("pred", "pred_joints", "logits", "pred_beta", "rot6d")


@dataclass(frozen=True, kw_only=True)
class Result:
    loss: GroupLoss
    gradients: dict[str, Tensor]


def cast(inputs: Any, dtype: torch.dtype | None) -> tuple[Any, dict[str, Tensor]]:
    """Return inputs on the device in another type (None: as they are), and their leaves."""
    leaves: dict[str, Tensor] = {}
    changed: dict[str, Any] = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, MeshInputs | ContactInputs):
            value, some = cast(value, dtype)
            leaves |= some
        if isinstance(value, Tensor):
            if value.is_floating_point() and dtype is not None:
                value = value.to(dtype)
            value = value.to(DEVICE)
            if field.name in LEAVES:
                value = value.detach().requires_grad_()
                leaves[field.name] = value
        changed[field.name] = value
    return replace(inputs, **changed), leaves


def result(
    compute: Compute,
    inputs: Any,
    names: tuple[str, ...],
    impl: Impl,
    dtype: torch.dtype | None,
    upstream: float = 1.0,
    *,
    poisoned: bool = True,
) -> Result:
    given, leaves = cast(inputs, dtype)
    lam = torch.linspace(0.5, 3.0, len(names), device=DEVICE)
    lam = lam.double() if dtype is torch.float64 else lam
    with poisoned_outputs() if poisoned else nullcontext():
        loss = compute(given, names, lam, impl)
        torch.autograd.backward(loss.total * upstream)
    grads = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in leaves.items()}
    return Result(loss=loss, gradients=grads)


def compare(compute: Compute, inputs: Any, names: tuple[str, ...], shape: Shape) -> None:
    run = [(Impl.eager, torch.float64), (Impl.eager, torch.float32), (Impl.triton, None)]
    true, eager, fused = (
        result(compute, inputs, names, impl, dtype, shape.upstream) for impl, dtype in run
    )
    assert torch.equal(fused.loss.seen, true.loss.seen)
    for k, name in enumerate(names):
        within(name, fused.loss.values[k], eager.loss.values[k], true.loss.values[k])
    within("total", fused.loss.total, eager.loss.total, true.loss.total)
    for name, gradient in fused.gradients.items():
        assert gradient.dtype is shape.dtype
        assert gradient.isfinite().all()
        lost = BF16_ULP if shape.dtype is torch.bfloat16 else 0.0
        within(name, gradient, eager.gradients[name], true.gradients[name], lost)


def within(name: str, found: Tensor, eager: Tensor, true: Tensor, lost: float = 0.0) -> None:
    """Check the bar; ``lost`` is what the type of the result cannot hold, relative."""
    found, eager, true = found.detach().double(), eager.detach().double(), true.detach().double()
    scale = true.abs().max()
    bar = torch.maximum(2 * (eager - true).abs().max(), FLOOR * scale) + lost * true.abs()
    worst = ((found - true).abs() - bar).max()
    assert worst <= 0, f"{name}: {float((found - true).abs().max())} with {float(scale)} at most"


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Outputs begin as NaN: a kernel must write every number of them."""
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def poison(made: Tensor) -> Tensor:
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(1)

    with (
        patch.object(Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k))),
        patch.object(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k))),
    ):
        yield


@given(SHAPES)
@settings(max_examples=25)
def test_joints(shape: Shape) -> None:
    names: tuple[str, ...] = JOINT_TERMS
    if shape.coincident:  # the direction of a distance of 0 is rounding
        names = tuple(name for name in names if name != "joints_pa")
    compare(joint_losses, joint_inputs(shape), names, shape)


@given(SHAPES)
@settings(max_examples=30)
def test_mesh_and_contact(shape: Shape) -> None:
    compare(mesh_compute, mesh_inputs(shape), MESH_TERMS, shape)


@given(SHAPES)
@settings(max_examples=40)
def test_rotations(shape: Shape) -> None:
    names: tuple[str, ...] = ROTATION_TERMS
    if shape.coincident:
        names = tuple(name for name in names if name != "theta_geodesic")
    compare(rotation_losses, rotation_inputs(shape), names, shape)


PLAIN = Shape(
    num=2, hands=2, seed=3, dtype=torch.float32, labels="some", contiguous=True, coincident=False,
    behind=False, kind=Distance.l1, upstream=1.0,
)  # fmt: skip
GROUPS = [
    pytest.param(joint_losses, joint_inputs, JOINT_TERMS, id="joints"),
    pytest.param(mesh_compute, mesh_inputs, MESH_TERMS, id="mesh"),
    pytest.param(rotation_losses, rotation_inputs, ROTATION_TERMS, id="rotations"),
]
each = pytest.mark.parametrize(("compute", "draw", "names"), GROUPS)


@each
def test_any_selection_in_any_order(
    compute: Compute, draw: Callable[[Shape], Any], names: tuple[str, ...]
) -> None:
    for some in ((names[-1],), (names[0],), tuple(reversed(names))):
        compare(compute, draw(PLAIN), some, PLAIN)


@each
def test_backward_twice_gives_twice_the_gradient(
    compute: Compute, draw: Callable[[Shape], Any], names: tuple[str, ...]
) -> None:
    given, leaves = cast(draw(PLAIN), None)
    lam = torch.ones(len(names), device=DEVICE)
    loss = compute(given, names, lam, Impl.triton)
    torch.autograd.backward(loss.total, retain_graph=True)
    once = {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}
    torch.autograd.backward(loss.total)
    assert len(once) == len(leaves)
    for name, gradient in once.items():
        assert torch.equal(leaves[name].grad, 2 * gradient)  # type: ignore[arg-type]


@each
def test_weights_on_the_device_change_what_is_next(
    compute: Compute, draw: Callable[[Shape], Any], names: tuple[str, ...]
) -> None:
    given, _ = cast(draw(PLAIN), None)
    lam = torch.ones(len(names), device=DEVICE)
    one = compute(given, names, lam, Impl.triton).total.item()
    lam.mul_(2)
    assert compute(given, names, lam, Impl.triton).total.item() == pytest.approx(2 * one, rel=1e-6)


@each
def test_what_is_under_a_mask_changes_nothing(
    compute: Compute, draw: Callable[[Shape], Any], names: tuple[str, ...]
) -> None:
    clean = draw(PLAIN)
    for poison in (torch.nan, torch.inf):
        poisoned = _poisoned(clean, poison)
        one, other = (
            result(compute, inputs, names, Impl.triton, None) for inputs in (clean, poisoned)
        )
        assert torch.equal(one.loss.values, other.loss.values)
        for name, gradient in one.gradients.items():
            assert torch.equal(gradient, other.gradients[name])


_UNDER = {
    "pred_beta": "has_beta", "target_beta": "has_beta", "rot6d": "present",
}  # fmt: skip


def _poisoned(inputs: Any, poison: float) -> Any:
    changed: dict[str, Any] = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, MeshInputs | ContactInputs):
            changed[field.name] = _poisoned(value, poison)
        elif isinstance(value, Tensor) and value.is_floating_point() and field.name != "weight":
            mask = getattr(inputs, _UNDER.get(field.name, "valid"))
            if field.name == "K":
                mask = mask.flatten(1).any(1)
            if field.name == "pred_beta":  # the prior looks at it too
                mask = mask | inputs.present
            mask = mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
            changed[field.name] = value.where(mask, poison)
    return replace(inputs, **changed)


@each
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # by numpy
def test_what_is_not_finite_shows_in_its_sample_alone(
    compute: Compute, draw: Callable[[Shape], Any], names: tuple[str, ...], poison: float
) -> None:
    inputs = draw(replace(PLAIN, labels="all"))
    _, leaves = cast(inputs, None)
    for name in leaves:
        given, others = cast(inputs, None)
        with torch.no_grad():
            others[name][0].fill_(poison)
        values = compute(given, names, torch.ones(len(names), device=DEVICE), Impl.triton).values
        assert not values[:, 0].isfinite().all()
        assert values[:, 1].isfinite().all()


SINGULAR = {
    "half turns": torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])),
    "equal": torch.eye(3).expand(3, 3, 3),
    "no rotation": torch.zeros(3, 3, 3),
    "mirrored": -torch.eye(3).expand(3, 3, 3),
}


@pytest.mark.parametrize("turned", SINGULAR.values(), ids=SINGULAR)
def test_singular_rotations_are_bounded(turned: Tensor) -> None:
    inputs = rotation_inputs(replace(PLAIN, labels="all"))
    eye = torch.eye(3).expand_as(inputs.target)
    pred = torch.cat([turned] * 6)[:16].expand_as(inputs.pred).contiguous()
    given, leaves = cast(replace(inputs, pred=pred, target=eye.contiguous()), None)
    loss = rotation_losses(given, ("theta_geodesic",), torch.ones(1, device=DEVICE), Impl.triton)
    torch.autograd.backward(loss.total)
    assert loss.values.isfinite().all()
    gradient = leaves["pred"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 1.0


def _rows(noise_m: float) -> Tensor:
    along = torch.linspace(0, 0.1, 21)[:, None] * torch.tensor([0.6, 0.0, 0.8])
    noise = torch.randn(2, 2, 21, 3, generator=torch.Generator().manual_seed(0))
    return along + noise_m * noise + torch.tensor([0.0, 0.0, 0.5])


@pytest.mark.parametrize("noise_m", [0.0, 1e-7, 3e-3])
def test_alignment_near_a_line_or_a_point_is_bounded(noise_m: float) -> None:
    inputs = joint_inputs(replace(PLAIN, labels="all"))
    for pred, target in (
        (_rows(noise_m), _rows(3e-3).flip(2)),
        (_rows(3e-3), _rows(noise_m)),
        (torch.full((2, 2, 21, 3), 0.5), _rows(3e-3)),
        (_rows(noise_m), _rows(noise_m)),
    ):
        given, leaves = cast(replace(inputs, pred=pred, target=target), None)
        loss = joint_losses(given, ("joints_pa",), torch.ones(1, device=DEVICE), Impl.triton)
        torch.autograd.backward(loss.total)
        gradient = leaves["pred"].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.norm(dim=-1).sum() <= 2.0
        true = joint_losses(
            cast(given, torch.float64)[0], ("joints_pa",), torch.ones(1), Impl.eager
        )
        assert (loss.values.cpu() - true.values).abs().max() < 2e-5  # of hands of 10 cm


@each
@pytest.mark.parametrize("impl", [Impl.triton, Impl.eager])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by Dynamo
def test_one_graph_without_a_break(
    compute: Compute, draw: Callable[[Shape], Any], names: tuple[str, ...], impl: Impl
) -> None:
    """Under torch.compile(fullgraph=True); its backend only traces, which needs no compiler."""
    torch.compiler.reset()
    inputs = draw(PLAIN)
    expected = result(compute, inputs, names, impl, None)
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager", dynamic=False)
    found = result(compiled, inputs, names, impl, None, poisoned=False)
    torch.testing.assert_close(found.loss.values, expected.loss.values)
    torch.testing.assert_close(found.loss.total, expected.loss.total)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="it can run there")
def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    inputs = joint_inputs(PLAIN)
    with pytest.raises(ValueError, match=r"loss.impl=triton needs a CUDA device, found cpu"):
        joint_losses(inputs, JOINT_TERMS, torch.ones(6), Impl.triton)
    assert not joint_losses(inputs, JOINT_TERMS, torch.ones(6), Impl.auto).total.is_cuda


@pytest.mark.gpu
@each
def test_a_captured_graph_repeats_without_waiting(
    compute: Compute, draw: Callable[[Shape], Any], names: tuple[str, ...]
) -> None:
    given, leaves = cast(draw(replace(PLAIN, num=64)), None)
    lam = torch.ones(len(names), device=DEVICE)

    def step() -> Tensor:
        loss = compute(given, names, lam, Impl.triton)
        return torch.stack([g.sum() for g in torch.autograd.grad(loss.total, [*leaves.values()])])

    for _ in range(3):
        expected = step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        graph = torch.cuda.CUDAGraph()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.cuda.graph(graph):
        found = step()
    lam.mul_(2)
    graph.replay()
    torch.testing.assert_close(found, 2 * expected)
