"""A captured step, by fakes of CUDA's part in it: what is asked of a capture, on which memory."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import train.step.graph
import train.step.step
from pipeline.batch import Batch
from pipeline.loader import Loader
from tests.conftest import SampleStore
from tests.train.device.two_ranks import Toy
from tests.train.state.test_checkpoint import config
from train.step.graph import WARM_STEPS, GraphedStep
from train.step.stages import Stage, resolve_stages
from train.step.step import StepOutput, TrainState, build_state, enter_stage, train_step

CPU = torch.device("cpu")


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls that copy."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "copy" in func.__name__ or "clone" in func.__name__:
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Recorded(NamedTuple):
    """What a fake of CUDA saw."""

    steps: list[tuple[str, Batch]]
    """Eager steps and captures, with the batch that they read."""
    captures: list[dict[str, Any]]
    streams: list[Any]
    """Those made."""
    replays: list[int]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    seen = Recorded([], [], [], [])

    class Graph:
        def replay(self) -> None:
            seen.replays.append(1)

    class Stream:
        def __init__(self, *_: Any) -> None:
            seen.streams.append(self)

        def wait_stream(self, _: Any) -> None:
            pass

    here = Stream()
    seen.streams.clear()

    @contextmanager
    def capture(_: Graph, **asked: Any) -> Iterator[None]:
        seen.captures.append(asked)
        yield

    def eager(state: TrainState, batch: Batch, *rest: Any) -> StepOutput:
        seen.steps.append(("eager", batch))
        return train_step(state, batch, *rest)

    def device_step(state: TrainState, batch: Batch, *rest: Any) -> StepOutput:
        seen.steps.append(("capture", batch))
        return plain(state, batch, *rest)

    plain = train.step.step.device_step
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: here)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(train.step.graph, "train_step", eager)
    monkeypatch.setattr(train.step.graph, "device_step", device_step)
    return seen


def begun(data: SampleStore, tmp_path: Path, *words: str) -> tuple[TrainState, Loader, Any, Stage]:
    settings = config(data, tmp_path, *(words or ["steps=20"]))
    loader = Loader(settings.pipeline, device=CPU)
    torch.manual_seed(3)
    state = build_state(Toy("vit"), settings, 8)
    (stage,) = resolve_stages(settings, lambda _: 1)
    enter_stage(state, stage, settings)
    return state, loader, settings, stage


def places(tensors: list[Tensor]) -> list[tuple[int, tuple[int, ...]]]:
    return [(tensor.data_ptr(), tensor.stride()) for tensor in tensors]


def test_other_threads_may_use_cuda_in_a_capture(
    freihand: SampleStore, tmp_path: Path, cuda: Recorded
) -> None:
    """A decoder allocates and waits while a step is captured; one stream is used for all."""
    state, loader, settings, stage = begun(freihand, tmp_path)
    step = GraphedStep(loader)
    for batch, _ in zip(loader, range(WARM_STEPS + 1), strict=False):
        step(state, batch, settings, stage)
    (stream,) = cuda.streams
    assert cuda.captures == [{"stream": stream, "capture_error_mode": "thread_local"}]


@pytest.mark.parametrize("augment", ["augment.rotation_deg=30", "augment=0"])
@pytest.mark.parametrize("told", [True, False])
def test_every_step_reads_the_same_memory(
    freihand: SampleStore, tmp_path: Path, cuda: Recorded, augment: str, *, told: bool
) -> None:
    """From the first eager one on, with the values of the batch: nothing differs in the capture."""
    words = [f"stages.a.{augment}", "stages.a.steps=20"] if augment == "augment=0" else []
    state, loader, settings, stage = begun(freihand, tmp_path, *words)
    loader.change(stage.pipeline)
    step = GraphedStep(loader if told else None)
    expected = Loader(loader.config, device=CPU)
    for batch, same in zip(loader, expected, strict=True):
        step(state, batch, settings, stage)
        read = cuda.steps[-1][1]
        for found, value in zip(read.tensors(), same.tensors(), strict=True):
            assert torch.equal(found.nan_to_num(), value.nan_to_num())
        if state.step == WARM_STEPS + 3:
            break
    assert [what for what, _ in cuda.steps] == ["eager"] * WARM_STEPS + ["capture"]
    first, *others = [places(read.tensors()) for _, read in cuda.steps]
    assert others == [first] * WARM_STEPS
    assert len(cuda.replays) == 3


def test_a_replay_copies_nothing_that_its_loader_wrote(
    freihand: SampleStore, tmp_path: Path, cuda: Recorded
) -> None:
    state, loader, settings, stage = begun(freihand, tmp_path)
    step = GraphedStep(loader)
    batches = iter(loader)
    for _ in range(WARM_STEPS + 1):
        step(state, next(batches), settings, stage)
    batch = next(batches)
    with Copies() as copies:
        step(state, batch, settings, stage)
    assert copies.calls == []
    other = batch.mapped(torch.Tensor.clone)
    with Copies() as copies:
        step(state, other, settings, stage)
    assert len(copies.calls) <= 4  # one for each type, not for each of 22 tensors
    assert len(cuda.replays) == 3


def test_nothing_is_compiled_in_a_capture(
    freihand: SampleStore, tmp_path: Path, cuda: Recorded
) -> None:
    """Batches of columns with other strides than their copies: compiled before, for the copies."""
    state, _, settings, stage = begun(freihand, tmp_path)
    state.net = torch.compile(state.model, backend="eager")  # type: ignore[assignment]
    wide = next(iter(Loader(settings.pipeline, device=CPU))).mapped(
        lambda x: torch.stack([x, x], 1)[:, 0]
    )
    step = GraphedStep()
    graphs = []
    for _ in range(WARM_STEPS + 1):
        step(state, wide, settings, stage)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * len(graphs)
    assert cuda.steps[-1][0] == "capture"
    torch._dynamo.reset()
