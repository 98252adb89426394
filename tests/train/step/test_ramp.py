"""Weights of losses on a ramp: their values, no new graph, the same bits after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch

import train.loop
from model.families import build_network
from model.mano.files import load_mano
from pipeline.app.cli import compose
from pipeline.batch import Batch
from pipeline.loader import Loader
from tests.conftest import SampleStore
from tests.train.state.test_checkpoint import config
from tests.train.test_run import log_of, weights
from train.config import RunConfig
from train.losses.config import weights_of
from train.losses.plan import LossPlan, Weights
from train.run import main as run
from train.step.ramp import loss_of, weights_at
from train.step.stages import Stage, resolve_stages
from train.step.step import (
    TrainState,
    before_step,
    build_state,
    enter_stage,
    losses_of,
    train_step,
)

CPU = torch.device("cpu")
RAMP = [
    "stages.rough.steps=4",
    "stages.rough.loss={theta: 0.4, vertices: 0, bone_length: 2}",
    "stages.fine.steps=20",
    "stages.fine.ramp=0.4",
    "stages.fine.loss={theta: 0.2, beta: 0, joints_2d: 3, vertices: 8}",
]
"""In ``fine`` bone_length and beta fade out, vertices fades in, joints_2d grows, theta shrinks."""


def on_device(plan: LossPlan) -> dict[str, float]:
    """The weights as the losses read them."""
    found: dict[str, float] = {}
    for on in vars_of(plan):
        found |= dict(zip(on.names, on.lam.tolist(), strict=True))
    return found


def begun(
    data: SampleStore, tmp_path: Path, *words: str
) -> tuple[TrainState, RunConfig, Stage, Batch]:
    """A run that is about to take the first step of its last stage."""
    settings = config(data, tmp_path, *words)
    loader = Loader(settings.pipeline, device=CPU)
    torch.manual_seed(0)
    model = build_network(settings.model, input_px=32, mano=load_mano(data.mano))
    state = build_state(model, settings, 8)
    stage = resolve_stages(settings, loader.steps_per_epoch)[-1]
    state.step = stage.begin
    enter_stage(state, stage, settings)
    return state, settings, stage, next(iter(loader))


def test_the_weights_at_the_beginning_half_way_and_at_the_end(
    freihand: SampleStore, tmp_path: Path
) -> None:
    state, settings, fine, batch = begun(freihand, tmp_path, *RAMP)
    rough, _ = resolve_stages(settings, lambda _: 1)
    before, after = weights_of(rough.loss), weights_of(fine.loss)
    assert before.keys() - after.keys() == {"beta", "bone_length"}
    assert after.keys() - before.keys() == {"vertices"}
    names = before.keys() | after.keys()
    held = {id(v.lam) for v in vars_of(state.losses)}
    assert fine.ramp * fine.steps == 8

    def at(within: int) -> dict[str, float]:
        state.step = fine.begin + within
        before_step(state, settings, fine)
        found = on_device(state.losses)
        assert found == pytest.approx(weights_at(fine, state.step), abs=1e-6)
        return {name: weight for name, weight in found.items() if name in names}

    begin, end = ({n: w.get(n, 0.0) for n in names} for w in (before, after))
    middle = {n: (begin[n] + end[n]) / 2 for n in names}
    assert at(0) == pytest.approx(begin, rel=1e-7)
    assert at(4) == pytest.approx(middle, rel=1e-6)
    assert at(8) == pytest.approx(end, rel=1e-7)
    assert at(19) == pytest.approx(end, rel=1e-7)
    assert {id(v.lam) for v in vars_of(state.losses)} == held  # in place

    state.step = fine.begin
    before_step(state, settings, fine)
    _, terms = losses_of(state, batch)
    assert {"vertices", "beta", "bone_length"} <= set(terms.names)


def vars_of(plan: LossPlan) -> list[Weights]:
    return [on for _, on in plan.groups]


def test_the_first_step_of_a_ramp_is_scored_as_the_stage_before(
    freihand: SampleStore, tmp_path: Path
) -> None:
    """And the one after its end as the stage itself: the loss is the same number."""
    with_ramp, settings, fine, batch = begun(freihand, tmp_path, *RAMP)
    without = [word for word in RAMP if "ramp" not in word]
    for step, words in ((fine.begin, RAMP[:2]), (fine.begin + 8, without)):
        with_ramp.step = step
        before_step(with_ramp, settings, fine)
        plain, *_ = begun(freihand, tmp_path, *words)
        expected = float(losses_of(plain, batch)[0].detach())
        assert float(losses_of(with_ramp, batch)[0].detach()) == pytest.approx(expected, rel=1e-6)


def test_the_first_stage_begins_at_the_weights_of_the_run() -> None:
    words = ["store=x", "loss.theta=5", "stages.a.steps=10", "stages.a.ramp=1"]
    (stage,) = resolve_stages(compose(RunConfig, [*words, "stages.a.loss={theta: 1}"]), lambda _: 1)
    assert [weights_at(stage, step)["theta"] for step in (0, 5, 10)] == [5.0, 3.0, 1.0]


def test_without_a_ramp_the_weights_are_those_of_the_stage_at_once() -> None:
    words = ["store=x", "stages.a.steps=10", "stages.a.loss={theta: 1}"]
    (stage,) = resolve_stages(compose(RunConfig, words), lambda _: 1)
    assert loss_of(stage) is stage.loss
    assert weights_at(stage, 0) == weights_of(stage.loss)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks at inputs
def test_a_ramp_makes_no_new_graph(freihand: SampleStore, tmp_path: Path) -> None:
    """The compiled losses are compiled once, and its weights are read anew in every step."""
    compiled = 0

    def count(graph: Any, _: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    state, settings, fine, batch = begun(freihand, tmp_path, *RAMP)
    torch.compiler.reset()
    state.total_loss = torch.compile(state.total_loss, backend=count, fullgraph=True, dynamic=False)
    found = [train_step(state, batch, settings, fine).loss for _ in range(12)]
    assert compiled == 1
    eager, *_ = begun(freihand, tmp_path, *RAMP)
    for loss in found:
        assert float(train_step(eager, batch, settings, fine).loss) == pytest.approx(float(loss))


@pytest.mark.parametrize("stop", [4, 7, 13])
def test_a_run_stopped_on_a_ramp_resumes_bitwise(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    words = [*RAMP, "stages.fine.steps=14", "stages.fine.ramp=0.5", "checkpoint_every=1"]
    assert run(config(freihand, tmp_path / "whole", *words)) == 0

    class Killed(BaseException):
        pass

    def die(state: Any, *rest: Any) -> Any:
        if state.step == stop:
            raise Killed
        return train_step(state, *rest)

    monkeypatch.setattr(train.loop, "train_step", die)
    with pytest.raises(Killed):
        run(config(freihand, tmp_path / "parts", *words))
    monkeypatch.setattr(train.loop, "train_step", train_step)
    assert run(config(freihand, tmp_path / "parts", *words)) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = log_of(tmp_path / "parts")
    assert "weight/theta" not in rows[0]
    theta = {row["step"] - 1: row["weight/theta"] for row in rows if row["step"] > 4}
    expected = {4 + k: 0.4 - 0.2 * min(1.0, k / 7) for k in range(14)}
    assert theta == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages.a.ramp=1.5"], r"a stage's ramp must lie in \[0, 1\], got 1.5"),
        (
            ["stages.a.ramp=0.5", "loss.uncertainty=true"],
            r"stages.a.ramp=0.5 and loss.uncertainty=true both change the weights",
        ),
        (
            ["stages.a.ramp=0.5", "loss.velocity=1", "stages.a.loss={velocity: 0}"],
            "loss.velocity needs windows of at least 2 frames",
        ),
    ],
)
def test_what_cannot_be_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_stages(compose(RunConfig, ["store=x", "stages.a.steps=1", *words]), lambda _: 1)
