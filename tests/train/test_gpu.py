"""The training step on a GPU: bf16, no waiting, the same mesh as the CPU's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train.loop
from model.geometry.rotation import axis_angle_to_rotmat
from model.mano.files import load_mano
from model.mano.layer import ManoLayer
from pipeline.app.cli import compose
from pipeline.batch import Batch
from pipeline.loader import Loader
from tests.conftest import SampleStore
from train.build import build_model
from train.config import Precision, RunConfig
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.state.mean_pose import measure_mean_pose
from train.step.graph import GraphedStep
from train.step.peak import measure_need
from train.step.stages import Stage, resolve_stages
from train.step.step import TrainState, build_state, enter_stage, train_step

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


def config(data: SampleStore, run_dir: Path) -> RunConfig:
    return run_config(data, run_dir)


def run_config(data: SampleStore, run_dir: Path, *more: str) -> RunConfig:
    words = [
        "experiment=quickstart",
        f"store={data.store}",
        f"mano={data.mano}",
        f"run_dir={run_dir}",
        "batch_size=16",
        "device=cuda",
        *more,
    ]
    built = compose(RunConfig, words)
    assert isinstance(built, RunConfig)
    return built


def assert_learns_without_waiting(
    state: TrainState, batch: Batch, settings: RunConfig, stage: Stage, steps: int
) -> None:
    first = float(train_step(state, batch, settings, stage).loss)
    for _ in range(3):
        train_step(state, batch, settings, stage)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = train_step(state, batch, settings, stage)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(steps):
        output = train_step(state, batch, settings, stage)
    assert float(output.loss) < 0.8 * first
    assert int(state.fault.count) == 0


def test_a_step_trains_in_bf16_without_waiting(freihand: SampleStore, tmp_path: Path) -> None:
    settings = config(freihand, tmp_path)
    loader = Loader(settings.pipeline, device=CUDA)
    model = build_model(
        settings, load_mano(freihand.mano), loader.joint_sets, load_weights=True
    ).to(CUDA)
    state = build_state(model, settings, 16)
    (stage,) = resolve_stages(settings, loader.steps_per_epoch)
    assert state.dtype is torch.bfloat16
    assert_learns_without_waiting(state, next(iter(loader)), settings, stage, 30)


def test_a_compiled_step_is_the_eager_one_and_does_not_wait(
    freihand: SampleStore, tmp_path: Path
) -> None:
    """The default: network and losses compiled, Triton losses as custom operators, bf16."""
    mano, found = load_mano(freihand.mano), []
    for compiled in (False, True):
        settings = replace(config(freihand, tmp_path), compile=compiled)
        torch.manual_seed(0)
        loader = Loader(settings.pipeline, device=CUDA)
        model = build_model(settings, mano, loader.joint_sets, load_weights=True).to(CUDA)
        state = build_state(model, settings, 16)
        (stage,) = resolve_stages(settings, loader.steps_per_epoch)
        enter_stage(state, stage, settings)
        batch, losses = next(iter(loader)), []
        for i in range(4):
            if i == 3:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            output = train_step(state, batch, settings, stage)
            torch.cuda.set_sync_debug_mode("default")
            losses.append(float(output.loss))
        found.append(losses)
        assert int(state.fault.count) == 0
    eager, compiled_losses = found
    assert compiled_losses == pytest.approx(eager, rel=0.03)


SCENE = (
    "pipeline.split=p1_train",
    "pipeline.view.kind=hand_object",
    "pipeline.window.length=3",
    "batch_size=2",
    "model.scene=hand_object",
    "model.temporal_layers=1",
    "model.temporal_width=64",
    "loss.velocity=1.0",
)


def test_a_step_of_windows_of_scenes_does_not_wait(arctic: SampleStore, tmp_path: Path) -> None:
    settings = run_config(arctic, tmp_path, *SCENE)
    loader = Loader(settings.pipeline, device=CUDA)
    mano = load_mano(arctic.mano)
    model = build_model(settings, mano, loader.joint_sets, load_weights=True).to(CUDA)
    model.start_from(measure_mean_pose(loader, model))
    state = build_state(model, settings, 2, objects=loader.objects)
    (stage,) = resolve_stages(settings, loader.steps_per_epoch)
    assert_learns_without_waiting(state, next(iter(loader)), settings, stage, 60)


def test_a_graph_of_the_step_is_the_step(freihand: SampleStore, tmp_path: Path) -> None:
    """The same losses and weights as eager steps; no waiting in replays."""
    settings = replace(config(freihand, tmp_path), precision=Precision.fp32)
    torch.backends.cudnn.deterministic = True
    found = []
    for step in (train_step, GraphedStep()):
        torch.manual_seed(0)
        loader = Loader(settings.pipeline, device=CUDA)
        mano = load_mano(freihand.mano)
        model = build_model(settings, mano, loader.joint_sets, load_weights=True).to(CUDA)
        state = build_state(model, settings, 16)
        (stage,) = resolve_stages(settings, loader.steps_per_epoch)
        batches, losses = iter(loader), []
        for i in range(24):
            batch = next(batches)
            if i == 12:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            output = step(state, batch, settings, stage)
            torch.cuda.set_sync_debug_mode("default")
            losses.append(float(output.loss))
        found.append((losses, {n: p.detach().clone() for n, p in model.named_parameters()}, state))
    torch.backends.cudnn.deterministic = False
    (eager, weights, one), (graphed, others, two) = found
    assert one.step == two.step == int(one.clock) == int(two.clock) == 24
    assert graphed == pytest.approx(eager, rel=1e-3)
    for name, expected in weights.items():
        assert (others[name] - expected).abs().max() <= 2e-3 * expected.abs().max() + 1e-4, name


@pytest.mark.parametrize("graph", [False, True])
def test_a_run_killed_and_continued(freihand: SampleStore, tmp_path: Path, *, graph: bool) -> None:
    """Weights within 1e-3 of the largest: sums on a GPU come in any order, bf16 has 8 bits."""

    class Killed(BaseException):
        pass

    words = ["steps=24", "checkpoint_every=1", "log_every=1", f"graph={str(graph).lower()}"]
    words += ["compile=false"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(run_config(freihand, whole, *words)) == 0
    for stop in (5, 13):
        with pytest.MonkeyPatch.context() as patch:
            save = train.loop.save

            def die(
                state: Any, *rest: Any, stop: int = stop, save: Any = save, **more: Any
            ) -> None:
                save(state, *rest, **more)
                if state.step == stop:
                    raise Killed

            patch.setattr(train.loop, "save", die)
            with pytest.raises(Killed):
                run(run_config(freihand, parts, *words))
    assert run(run_config(freihand, parts, *words)) == 0
    one, two = (read_checkpoint(folder, say=pytest.fail) for folder in (whole, parts))
    assert one["step"] == two["step"] == 24
    assert one["loader"] == two["loader"]
    for name, expected in one["ema"].items():
        if expected.is_floating_point():
            difference = (two["ema"][name] - expected).abs().max()
            assert difference <= 1e-3 * expected.abs().max() + 1e-4, name


def test_a_step_has_a_measured_peak(freihand: SampleStore, tmp_path: Path) -> None:
    """The plan leaves the step's memory free; measuring it changes nothing of the model."""
    settings = config(freihand, tmp_path)
    loader = Loader(settings.pipeline, device=CUDA)
    mano = load_mano(freihand.mano)
    model = build_model(settings, mano, loader.joint_sets, load_weights=True).to(CUDA)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.cuda.get_rng_state()
    peak = measure_need(model, settings).bytes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.cuda.get_rng_state(), drawn)
    weights = sum(p.nbytes for p in model.parameters())
    assert 3 * weights < peak < 16 * 2**30


def test_the_mano_layer_agrees_with_the_cpu(freihand: SampleStore) -> None:
    models = load_mano(freihand.mano)
    generator = torch.Generator().manual_seed(0)
    theta = axis_angle_to_rotmat(torch.randn(9, 16, 3, generator=generator) * 0.5)
    beta, transl = torch.randn(9, 10, generator=generator), torch.randn(9, 3, generator=generator)
    right = torch.tensor([True, False, True] * 3)
    inputs = (theta, beta, transl, right)
    there = ManoLayer(models).to(CUDA)(*(value.to(CUDA) for value in inputs))
    here = ManoLayer(models)(*inputs)
    for ours, theirs in zip(there, here, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=2e-6)  # metres
