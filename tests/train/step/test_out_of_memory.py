"""Out of memory in the middle of a step: the same batch again in more parts, the same gradient."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

import train.loop
import train.step.graph
from pipeline.batch import Batch
from pipeline.loader import Loader
from tests.conftest import SampleStore
from tests.train.device.two_ranks import Memory, Toy, in_dtype
from tests.train.state.test_checkpoint import config, resumed
from tests.train.test_run import losses, weights
from train.config import RunConfig
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.step.graph import WARM_STEPS, GraphedStep
from train.step.out_of_memory import NoMemoryError, more_parts, retried
from train.step.stages import Stage, resolve_stages
from train.step.step import StepOutput, TrainState, build_state, enter_stage, train_step

CPU = torch.device("cpu")


def begun(
    data: SampleStore, tmp_path: Path, place: str = "forward"
) -> tuple[TrainState, Memory, RunConfig, Stage, list[Batch]]:
    settings = config(data, tmp_path, "steps=6", "optim.clip_norm=1e9")
    batches = [
        in_dtype(batch, torch.float64)
        for batch, _ in zip(Loader(settings.pipeline, device=CPU), range(6), strict=False)
    ]
    torch.manual_seed(3)
    net: Any = Toy("vit").to(torch.float64)
    memory = Memory(net, place)
    state = build_state(net, settings, 8)
    (stage,) = resolve_stages(settings, lambda _: 1)
    enter_stage(state, stage, settings)
    return state, memory, settings, stage, batches


def trained(
    data: SampleStore, tmp_path: Path, place: str, room_from_step_2: int
) -> tuple[TrainState, list[dict[str, Tensor]], list[StepOutput]]:
    """Take six steps; returns the gradient of each, before the update, as well."""
    state, memory, settings, stage, batches = begun(data, tmp_path, place)
    gradients: list[dict[str, Tensor]] = []
    state.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(
            {n: p.grad.clone() for n, p in state.model.named_parameters() if p.grad is not None}
        )
    )
    outputs = []
    for number, batch in enumerate(batches):
        if number == 2:
            memory.room = room_from_step_2
        outputs.append(train_step(state, batch, settings, stage))
    assert memory.seen
    return state, gradients, outputs


@pytest.mark.parametrize("place", ["forward", "backward begins", "backward"])
@pytest.mark.parametrize(("room", "parts"), [(4, 2), (3, 4), (1, 8)])
def test_neither_gradient_nor_weights_change(
    freihand: SampleStore, tmp_path: Path, place: str, room: int, parts: int
) -> None:
    plain, expected, losses_of_plain = trained(freihand, tmp_path, place, 8)
    short, gradients, losses_of_short = trained(freihand, tmp_path, place, room)
    assert (plain.accumulate, short.accumulate) == (1, parts)
    assert short.step == plain.step == int(short.clock) == 6
    assert len(gradients) == len(expected) == 6
    for step, (found, wanted) in enumerate(zip(gradients, expected, strict=True)):
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert wanted[name].dtype is torch.float64
            difference = (found[name] - wanted[name]).abs().max()
            assert difference <= 1e-10 * wanted[name].abs().max(), (step, name)
    for name, wanted_weight in plain.model.state_dict().items():
        torch.testing.assert_close(
            short.model.state_dict()[name], wanted_weight, rtol=1e-10, atol=1e-10
        )
    for one, other in zip(losses_of_short, losses_of_plain, strict=True):
        assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-12)
        assert one.terms.values.shape == other.terms.values.shape


def test_a_batch_of_single_samples_that_does_not_fit_ends_the_run_with_a_sentence(
    freihand: SampleStore, tmp_path: Path
) -> None:
    state, memory, settings, stage, batches = begun(freihand, tmp_path)
    train_step(state, batches[0], settings, stage)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    memory.room = 0
    expected = (
        r"step 1 runs out of memory even with one sample at a time \(accumulate=8, batch of 8"
    )
    with pytest.raises(NoMemoryError, match=expected):
        train_step(state, batches[1], settings, stage)
    assert all(torch.equal(before[n], value) for n, value in state.model.state_dict().items())
    assert more_parts(4, 6, 0) == 6
    with pytest.raises(NoMemoryError):
        more_parts(6, 6, 0)


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def attempt() -> NoReturn:
        calls.append(1)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        retried(attempt, lambda: calls.append(2))
    assert calls == [1]


def test_what_a_failed_attempt_held_is_free_before_the_next() -> None:
    import weakref

    held: list[weakref.ref[Tensor]] = []

    def attempt() -> int:
        activation = torch.zeros(3)
        if not held:
            held.append(weakref.ref(activation))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(activation)

    def prepare() -> None:
        assert held[0]() is None

    assert retried(attempt, prepare) == 3


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[list[int]]]:
    """Let a run go out of memory once, in a step; returns the samples of each step that it took."""

    def short(at: int) -> list[list[int]]:
        taken: list[list[int]] = []

        def take(state: TrainState, batch: Batch, *rest: Any) -> StepOutput:
            hook: Any = None

            def run_out(*_: Any) -> None:
                hook.remove()
                raise torch.OutOfMemoryError("CUDA out of memory.")

            if state.step == at:
                mlp: Any = state.model.mlp
                hook = mlp[-1].register_full_backward_pre_hook(run_out)
            output = train_step(state, batch, *rest)
            taken.append(batch.sample_id.tolist())
            return output

        monkeypatch.setattr(train.loop, "train_step", take)
        return taken

    return short


def test_a_run_goes_on_with_more_parts_and_resumes_with_them(
    freihand: SampleStore,
    tmp_path: Path,
    steps: Callable[[int], list[list[int]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["model.backbone=test_vit", "steps=8", "checkpoint_every=1", "log_every=1"]
    plain = steps(99)
    assert run(config(freihand, tmp_path / "plain", *words)) == 0
    short = steps(3)
    assert run(config(freihand, tmp_path / "short", *words)) == 0
    assert short == plain
    assert "out of memory: accumulate=2 from step 3 on" in capsys.readouterr().out
    one, other = losses(tmp_path / "plain"), losses(tmp_path / "short")
    assert other == pytest.approx(one, rel=1e-3)
    assert [other[step] for step in (1, 2, 3)] == [one[step] for step in (1, 2, 3)]
    assert read_checkpoint(tmp_path / "plain", say=pytest.fail)["accumulate"] == 1
    assert read_checkpoint(tmp_path / "short", say=pytest.fail)["accumulate"] == 2

    class Killed(BaseException):
        pass

    save = train.loop.save
    with pytest.MonkeyPatch.context() as patch:

        def die(state: TrainState, *rest: Any, **more: Any) -> None:
            save(state, *rest, **more)
            if state.step == 5:
                raise Killed

        patch.setattr(train.loop, "save", die)
        steps(3)
        with pytest.raises(Killed):
            run(config(freihand, tmp_path / "parts", *words))
    again = steps(99)
    assert run(resumed(tmp_path / "parts", f"mano={freihand.mano}")) == 0
    assert again == plain[5:]
    whole, parts = weights(tmp_path / "short"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_resumed_run_may_ask_for_more_parts(freihand: SampleStore, tmp_path: Path) -> None:
    """But not for fewer than it had to take."""
    run_dir = tmp_path / "run"
    assert run(config(freihand, run_dir, "steps=1", "accumulate=2")) == 0
    assert run(config(freihand, run_dir, "steps=2")) == 0
    assert read_checkpoint(run_dir, say=pytest.fail)["accumulate"] == 2
    assert run(resumed(run_dir, f"mano={freihand.mano}", "steps=3", "accumulate=4")) == 0
    assert read_checkpoint(run_dir, say=pytest.fail)["accumulate"] == 4


# --- a CUDA graph, by fakes -----------------------------------------------------------------------


def test_a_graph_is_captured_anew_with_the_parts_that_fit(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture that runs out of memory ends in an error of its own, as CUDA's do."""
    state, _, settings, stage, batches = begun(freihand, tmp_path)
    did: list[tuple[str, int]] = []
    graphed = GraphedStep()

    class Graph:
        def replay(self) -> None:
            did.append(("replay", state.accumulate))

    @contextmanager
    def capture(_: Graph, **__: Any) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            failed = RuntimeError("operation failed due to a previous error during capture")
            raise failed  # noqa: B904 - as from __exit__: what was before is its context

    def device_step(state: TrainState, *_: Any) -> Any:
        did.append(("capture", state.accumulate))
        if state.accumulate == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return "captured"

    def on_the_side(self: GraphedStep, state: TrainState, *rest: Any) -> StepOutput:
        did.append(("eager", state.accumulate))
        return train_step(state, *rest)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(train.step.graph, "device_step", device_step)
    monkeypatch.setattr(GraphedStep, "_on_the_side", on_the_side)
    for _ in range(WARM_STEPS):
        graphed(state, batches[0], settings, stage)
    for _ in range(WARM_STEPS + 2):
        graphed(state, batches[0], settings, stage)
    expected = [("eager", 1)] * WARM_STEPS + [("capture", 1)] + [("eager", 2)] * WARM_STEPS
    assert did == [*expected, ("capture", 2), ("replay", 2), ("replay", 2)]
    assert state.step == 2 * WARM_STEPS + 2


# --- ranks: test_distributed has two of them ------------------------------------------------------


def test_the_first_step_of_ranks_cannot_be_tried_again(
    freihand: SampleStore, tmp_path: Path
) -> None:
    state, memory, settings, stage, batches = begun(freihand, tmp_path)
    state.ranks = dataclasses.replace(state.ranks, world=2, rank=1)
    memory.room = 4
    with pytest.raises(NoMemoryError, match="rank 1 ran out of memory in step 0"):
        train_step(state, batches[0], settings, stage)
