"""The loop itself: what a step costs when the network costs nothing, and what logging costs."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train.loop
from tests.conftest import SampleStore
from tests.train.state.test_checkpoint import config
from tests.train.test_run import log_of
from train.losses.total import LossTerms
from train.run import main as run
from train.step.step import StepOutput
from train.watch.log import RunLog

TERMS = ("joints_abs", "joints_rel", "joints_2d", "theta", "beta", "vertices")
STEPS = 3000


def no_op_output() -> StepOutput:
    one = torch.ones(())
    terms = LossTerms(
        names=TERMS, values=torch.ones(len(TERMS), 8), seen=torch.ones(len(TERMS), 8) > 0
    )
    return StepOutput(loss=one, terms=terms, grad_norm=one, lr=one)


@pytest.mark.slow  # microseconds: for a quiet machine, and one like that of the soak's rows
def test_what_the_loop_costs(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 100 us per step, and 20 us of logging, beside a network and data that cost nothing.

    The median over stretches of 50 steps: a busy neighbour lengthens some of them.
    """
    output, marks, logged = no_op_output(), [], []

    def step(state: Any, *_: Any) -> StepOutput:
        state.step += 1
        if state.step % 50 == 1:
            marks.append([time.perf_counter(), 0.0])
        elif state.step % 50 == 0:
            marks[-1][1] = time.perf_counter()
        return output

    scalars = RunLog.scalars

    def timed(self: RunLog, *arguments: Any) -> None:
        begin = time.perf_counter()
        scalars(self, *arguments)
        logged.append(time.perf_counter() - begin)

    monkeypatch.setattr(train.loop, "train_step", step)
    monkeypatch.setattr(RunLog, "scalars", timed)
    words = [f"steps={STEPS}", "probe=true", "log_every=50", "pictures_every=100000"]
    assert run(config(freihand, tmp_path, *words, "checkpoint_every=100000")) == 0
    stretches = sorted(end - begin for begin, end in marks)
    per_step = stretches[len(stretches) // 2] / 49
    per_log = sorted(logged)[len(logged) // 2] / 50
    print(f"loop {1e6 * per_step:.1f} us, logging {1e6 * per_log:.1f} us per step")  # noqa: T201
    assert per_step <= 100e-6
    assert per_log <= 20e-6


def test_a_probe_trains_on_one_batch_and_saves_nothing(
    freihand: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []

    def step(state: Any, batch: Any, *_: Any) -> StepOutput:
        state.step += 1
        seen.append(batch.sample_id.tolist())
        return no_op_output()

    monkeypatch.setattr(train.loop, "train_step", step)
    assert run(config(freihand, tmp_path, "steps=5", "probe=true", "pictures_every=9")) == 0
    assert len(seen) == 5
    assert all(ids == seen[0] for ids in seen)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "weights").exists()
    assert [row["step"] for row in log_of(tmp_path)] == [1, 2, 3, 4, 5]
    assert "samples/s at most; " in capsys.readouterr().out.splitlines()[-1]
