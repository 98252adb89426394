"""Cost of the three fused groups of loss terms: eager, compiled, Triton, and in a CUDA graph.

    python -m benchmarks losses

Forward and backward of every term of ``train.losses.groups`` on one hand per sample, with the
gradients of all predictions. Launches are kernels on a GPU (by torch's profiler), else operators
that compute; bytes are what those operators read and write (eager), what Inductor reports for its
kernels (compile), or each input and output tensor once (Triton, by design).

Without a GPU only the time of eager and compiled code is measured. Triton's launches and bytes are
counted, but not its time: that of the interpreter is meaningless.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.config import LossesBenchConfig
from benchmarks.harness import (
    Bar,
    Measurement,
    Row,
    append_rows,
    measure_together,
    print_bars,
    print_table,
    record,
)
from model.geometry.rotation import rot6d_to_rotmat
from pipeline.app.words import say
from train.losses.config import Impl
from train.losses.groups import joint_losses, mesh_losses, rotation_losses
from train.losses.inputs import (
    JOINT_TERMS,
    MESH_TERMS,
    ROTATION_TERMS,
    ContactInputs,
    JointInputs,
    MeshInputs,
    RotationInputs,
)

OF_EAGER: Final = 8.0
OF_COMPILE: Final = 1.5
EAGER, COMPILED, TRITON, GRAPH = "eager", "torch.compile", "Triton", "Triton, CUDA graph"
_NUM_INPUTS: Final = 4
_FREE: Final = ("empty", "new_empty", "_unsafe_view", "_reshape_alias")
"""Operators, besides views, that launch nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """A batch for all three groups."""

    joints: JointInputs
    mesh: MeshInputs
    contact: ContactInputs
    rotations: RotationInputs

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Return the predictions, which require gradients."""
        return (
            self.joints.pred, self.mesh.pred, self.contact.logits,
            self.rotations.pred, self.rotations.pred_beta, self.rotations.rot6d,
        )  # fmt: skip

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Return every input tensor once."""
        seen: set[int] = set()
        for part in (self.joints, self.mesh, self.contact, self.rotations):
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                if isinstance(value, Tensor) and id(value) not in seen:
                    seen.add(id(value))
                    yield value


Run = Callable[[Inputs], object]


def main(config: LossesBenchConfig) -> int:
    """Measure, append the rows and print them; return 1 if a target is missed (needs a GPU)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, bars = measure_losses(config, device)
    append_rows(config.results, rows)
    print_table(rows)
    if not bars:
        say("Triton's time needs a GPU: not measured here")
        return 0
    return 0 if print_bars(bars) else 1


def measure_losses(config: LossesBenchConfig, device: torch.device) -> tuple[list[Row], list[Bar]]:
    """Return the rows of all batch sizes, and on a GPU the bars."""
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    rows, bars = [], []
    for num in config.batches:
        inputs = [draw_inputs(num, seed, device) for seed in range(_NUM_INPUTS)]
        runs = variants(inputs[0], device, compiled=config.compiled)
        timed = {n: run for n, run in runs.items() if device.type == "cuda" or n != TRITON}
        times = measure_together(
            timed,
            min_time_s=config.min_time_s,
            repeats=config.repeats,
            warmup_s=config.min_time_s / 5,
            device="cuda" if device.type == "cuda" else "cpu",
            inputs=[(batch,) for batch in inputs],
        )
        for name, run in runs.items():
            launches, size = costs(name, run, inputs[0], device)
            found = {"launches": (launches, "launches"), "bytes": (size / 1e6, "MB")}
            measured = {m: (_one(value), unit) for m, (value, unit) in found.items()}
            if name in times:
                measured["forward + backward"] = times[name].rate(1), "1/s"
            rows += [
                record(
                    "losses", name, metric, unit, value,
                    params={"batch": num, "device": device.type},
                    config=dataclasses.asdict(config),
                )
                for metric, (value, unit) in measured.items()
            ]  # fmt: skip
        if device.type == "cuda":
            for name, at_least in ((EAGER, OF_EAGER), (COMPILED, OF_COMPILE)):
                if name in times:
                    times_faster = times[name].p50 / times[TRITON].p50
                    bars.append(
                        Bar(
                            name=f"Triton against {name}, B = {num}",
                            measured=times_faster,
                            at_least=at_least,
                            unit="x",
                        )
                    )
    return rows, bars


def variants(example: Inputs, device: torch.device, *, compiled: bool) -> dict[str, Run]:
    """Return the ways to compute the groups; a graph only on a GPU."""
    runs: dict[str, Run] = {EAGER: step(Impl.eager, device)}
    if compiled:
        # Autograd runs outside: Dynamo does not trace it.
        runs[COMPILED] = step(Impl.eager, device, torch.compile(total, dynamic=False))
    runs[TRITON] = step(Impl.triton, device)
    if device.type == "cuda":
        runs[GRAPH] = captured(runs[TRITON], example)
    return runs


def total(inputs: Inputs, lams: Sequence[Tensor], impl: Impl) -> Tensor:
    """Return the sum of the three groups."""
    joints = joint_losses(inputs.joints, JOINT_TERMS, lams[0], impl)
    mesh = mesh_losses(inputs.mesh, inputs.contact, MESH_TERMS, lams[1], impl)
    rotations = rotation_losses(inputs.rotations, ROTATION_TERMS, lams[2], impl)
    return joints.total + mesh.total + rotations.total


def step(impl: Impl, device: torch.device, of: Callable[..., Tensor] = total) -> Run:
    """Return a function that computes the total and the gradients of all predictions."""
    lams = [
        torch.linspace(0.5, 2.0, len(terms), device=device)
        for terms in (JOINT_TERMS, MESH_TERMS, ROTATION_TERMS)
    ]

    def run(inputs: Inputs) -> object:
        return torch.autograd.grad(of(inputs, lams, impl), inputs.leaves)

    return run


def captured(run: Run, example: Inputs) -> Run:
    """Return a CUDA graph replay of ``run`` on the memory of ``example``; ignores arguments."""
    for _ in range(3):
        run(example)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(example)
    return lambda _: graph.replay()


def costs(name: str, run: Run, inputs: Inputs, device: torch.device) -> tuple[float, float]:
    """Return launches and bytes of one call."""
    if name == COMPILED:
        launches, size = _of_inductor(run, inputs)
    else:
        counter = _Counter()
        with _uncalled_kernels() as kernels, counter:
            run(inputs)
        launches, size = counter.launches + kernels[0], counter.bytes
    if name in (TRITON, GRAPH):
        size = sum(t.nbytes for t in (*inputs.tensors, *inputs.leaves))
    return float(launches_on_gpu(run, inputs) if device.type == "cuda" else launches), float(size)


def launches_on_gpu(run: Run, inputs: Inputs) -> int:
    """Return the kernels and copies that one call runs on the device."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run(inputs)
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiled.events())


def _of_inductor(run: Run, inputs: Inputs) -> tuple[int, int]:
    """Return the number of Inductor kernels of one call, and its estimate of their bytes."""
    from torch._inductor import compile_fx, config, metrics

    metrics.reset()
    torch.compiler.reset()
    log = compile_fx.inductor_metrics_log  # bytes are counted only for a log
    with (
        config.patch(force_disable_caches=True),
        patch.object(log, "isEnabledFor", return_value=True),
        patch.object(log, "info"),
    ):
        run(inputs)
    return metrics.generated_kernel_count, metrics.num_bytes_accessed


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that compute, and the bytes they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.__name__.startswith(_FREE):
            self.launches += 1
            found = tree_leaves((args, kwargs, result))
            self.bytes += sum(t.nbytes for t in found if isinstance(t, Tensor))
        return result


@contextmanager
def _uncalled_kernels() -> Iterator[list[int]]:
    """Count the launches of the three Triton kernels without executing them."""
    counted = [0]

    def launch(*_: Any) -> None:
        counted[0] += 1

    with (
        patch.dict(os.environ, TRITON_INTERPRET="1"),  # else a CPU is refused
        patch("train.losses.fused.joints._launch", launch),
        patch("train.losses.fused.mesh._launch", launch),
        patch("train.losses.fused.rotations._launch", launch),
    ):
        yield counted


def draw_inputs(num: int, seed: int, device: torch.device) -> Inputs:
    """Return a random batch of one hand per sample, with most labels valid."""
    generator = torch.Generator().manual_seed(seed)

    def near(values: Tensor, size: float) -> Tensor:
        moved = values + size * torch.randn(values.shape, generator=generator)
        return moved.to(device).requires_grad_()

    def some(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) < 0.9).to(device)

    joints = 0.05 * torch.randn(num, 1, 21, 3, generator=generator) + 0.6
    vertices = 0.05 * torch.randn(num, 1, 778, 3, generator=generator) + 0.6
    rot6d = torch.randn(num, 1, 16, 6, generator=generator)
    beta = torch.randn(num, 1, 10, generator=generator)
    K = torch.tensor([[300.0, 0.0, 112.0], [0.0, 300.0, 112.0], [0.0, 0.0, 1.0]])
    pred, target = near(joints, 0.01), joints.to(device)
    moved = near(rot6d, 0.1)
    return Inputs(
        joints=JointInputs(
            pred=pred,
            target=target,
            valid=some(num, 1, 21),
            K=K.expand(num, 3, 3).contiguous().to(device),
            input_px=224,
        ),
        mesh=MeshInputs(
            pred=near(vertices, 0.01),
            target=vertices.to(device),
            pred_joints=pred,
            target_joints=target,
            valid=some(num, 1),
        ),
        contact=ContactInputs(
            logits=near(torch.zeros(num, 1, 778), 2.0),
            target=torch.rand(num, 1, 778, generator=generator).to(device),
            valid=some(num, 1),
        ),
        rotations=RotationInputs(
            pred=rot6d_to_rotmat(moved.detach()).requires_grad_(),
            target=rot6d_to_rotmat(rot6d).to(device),
            valid=some(num, 1),
            pred_beta=near(beta, 0.3),
            target_beta=beta.to(device),
            has_beta=some(num, 1),
            rot6d=moved,
            present=some(num, 1),
        ),
    )


def _one(value: float) -> Measurement:
    return Measurement(p20=value, p50=value, p80=value, n=1)
