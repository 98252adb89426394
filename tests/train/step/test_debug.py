"""debug=true: the same weights, the terms' gradients, and where a value stops being finite."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train.loop
from model.families import build_network
from model.mano.files import load_mano
from model.prediction import hands_of
from pipeline.batch import TENSORS, Batch
from pipeline.loader import Loader
from tests.conftest import SampleStore
from tests.train.state.test_checkpoint import config, resumed
from tests.train.test_run import log_of, losses, weights
from train.config import RunConfig
from train.device.distributed import Ranks
from train.losses.config import Impl
from train.losses.terms import mano
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.step.debug import DebugStep, gradient_of
from train.step.fault import DivergedError
from train.step.stages import Stage, resolve_stages
from train.step.step import (
    TrainState,
    before_step,
    build_state,
    enter_stage,
    losses_of,
    predict,
    train_step,
)

CPU = torch.device("cpu")


def begun(
    data: SampleStore, tmp_path: Path, *words: str
) -> tuple[TrainState, RunConfig, Stage, list[Batch], DebugStep]:
    settings = config(data, tmp_path, "model.backbone=test_vit", *words)
    loader = Loader(settings.pipeline, device=CPU)
    batches = [batch for batch, _ in zip(loader, range(4), strict=False)]
    torch.manual_seed(0)
    model = build_network(settings.model, input_px=32, mano=load_mano(data.mano))
    state = build_state(model, settings, 8)
    stage = resolve_stages(settings, loader.steps_per_epoch)[0]
    enter_stage(state, stage, settings)
    return state, settings, stage, batches, DebugStep(tmp_path, loader)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_norm_of_each_terms_gradient(freihand: SampleStore, tmp_path: Path, parts: int) -> None:
    """Against the difference that leaving a term out makes to the whole gradient."""
    words = ["debug=true", f"accumulate={parts}", "optim.clip_norm=1e9", "stages.a.steps=9"]
    words += ["stages.a.ramp=0.5", "stages.a.loss={theta: 2, bone_length: 3, beta: 0}"]
    state, settings, stage, batches, step = begun(freihand, tmp_path, *words)
    assert state.losses.settings.impl is Impl.eager

    def kept(names: tuple[str, ...], leave_out: str) -> Tensor:
        return torch.tensor([name != leave_out for name in names])

    def gradient(leave_out: str | None) -> Tensor:
        plan = state.losses
        if leave_out is not None:
            groups = tuple(
                (group, dataclasses.replace(on, lam=on.lam * kept(on.names, leave_out)))
                for group, on in plan.groups
            )
            state.losses = dataclasses.replace(plan, groups=groups)
        state.model.zero_grad()
        torch.autograd.backward(losses_of(state, batches[2])[0])
        state.losses = plan
        found = [p.grad for p in state.model.parameters() if p.grad is not None]
        state.model.zero_grad()
        return torch.cat([one.flatten().double() for one in found])

    for batch in batches[:2]:
        step(state, batch, settings, stage)
    before_step(state, settings, stage)
    whole = gradient(None)
    _, terms = losses_of(state, batches[2])
    expected = {name: float((whole - gradient(name)).norm()) for name in terms.names}
    output = step(state, batches[2], settings, stage)
    assert output.term_norms is not None
    found = dict(zip(output.terms.names, output.term_norms.tolist(), strict=True))
    assert found == pytest.approx(expected, rel=1e-3)
    assert found["bone_length"] > 0
    assert float(output.grad_norm) == pytest.approx(float(whole.norm()), rel=1e-4)


def test_a_run_has_the_same_weights_and_logs_more(freihand: SampleStore, tmp_path: Path) -> None:
    words = ["model.backbone=test_vit", "steps=4", "log_every=2"]
    assert run(config(freihand, tmp_path / "plain", *words)) == 0
    assert run(config(freihand, tmp_path / "debug", *words, "debug=true", "graph=true")) == 0
    plain, debug = weights(tmp_path / "plain"), weights(tmp_path / "debug")
    assert all(torch.equal(plain[name], debug[name]) for name in plain)
    assert losses(tmp_path / "plain") == losses(tmp_path / "debug")
    row = log_of(tmp_path / "debug")[-1]
    terms = {name.removeprefix("loss/") for name in row if name.startswith("loss/")}
    assert {f"grad_norm/{name}" for name in terms} <= row.keys()
    assert all(row[f"grad_norm/{name}"] > 0 for name in terms)
    assert not any(name.startswith("grad_norm/") for name in log_of(tmp_path / "plain")[-1])


def poisoned(batch: Batch) -> Batch:
    joints = batch.joints_3d.clone()
    joints[3, 0, 5] = joints[6, 0, 1] = torch.nan
    return dataclasses.replace(batch, joints_3d=joints)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_that_is_not_finite_is_named_with_its_samples(
    freihand: SampleStore, tmp_path: Path, parts: int
) -> None:
    words = ["debug=true", f"accumulate={parts}"]
    state, settings, stage, batches, step = begun(freihand, tmp_path, *words)
    step(state, batches[0], settings, stage)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    ids = batches[1].sample_id
    named = [int(ids[3]), int(ids[6])] if parts == 1 else [int(ids[3])]  # the first part's
    expected = (
        r"debug: in step 1 the loss is not finite in joints_abs, joints_rel, joints_2d, "
        rf"of samples \[{', '.join(map(str, named))}\] \(first: sample {named[0]}.*batch-0000001.pt"
    )
    with pytest.raises(DivergedError, match=expected):
        step(state, poisoned(batches[1]), settings, stage)
    assert all(torch.equal(before[n], value) for n, value in state.model.state_dict().items())
    saved = torch.load(tmp_path / "debug" / "batch-0000001.pt", weights_only=True)
    assert saved.keys() == set(TENSORS)
    again = Batch(**saved)
    assert torch.equal(again.sample_id, ids)
    assert torch.isnan(again.joints_3d[3, 0, 5]).all()
    assert torch.equal(again.image, batches[1].image)


def test_a_batch_that_cannot_be_written_does_not_hide_the_fault(
    freihand: SampleStore, tmp_path: Path
) -> None:
    state, settings, stage, batches, step = begun(freihand, tmp_path, "debug=true")
    (tmp_path / "debug").touch()
    expected = r"the loss is not finite in joints_abs.* The batch was not written: File exists"
    with pytest.raises(DivergedError, match=expected):
        step(state, poisoned(batches[0]), settings, stage)


@pytest.mark.filterwarnings("ignore:Error detected in")  # torch shows where it was computed
def test_a_gradient_that_is_not_finite_is_named_with_its_samples(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, but the root of a zero is in it: in one sample of one term."""
    state, settings, stage, batches, step = begun(freihand, tmp_path, "debug=true")
    predicted = hands_of(predict(state.net, batches[0], state.dtype)).theta_rotmat
    assert predicted is not None
    bad, plain = predicted[5].detach(), mano.theta

    def theta(pred: Tensor, *rest: Tensor) -> Tensor:
        value = plain(pred, *rest)
        # Alone it is predicted in other roundings.
        found = ((pred - bad).abs().flatten(1).amax(1) < 5e-6).nonzero().flatten()
        zero = value[found] - value[found].detach()
        return value.index_add(0, found, zero.abs().sqrt())

    monkeypatch.setattr(mano, "theta", theta)
    expected = (
        r"in step 0 the gradient of theta is not finite \(Function '.*' returned nan values "
        rf".*\), of samples \[{int(batches[0].sample_id[5])}\] \(first: sample .*batch-0000000.pt"
    )
    with pytest.raises(DivergedError, match=expected):
        step(state, batches[0], settings, stage)
    assert (tmp_path / "debug" / "batch-0000000.pt").exists()


def test_a_gradient_that_overflows_is_seen() -> None:
    net = nn.Linear(1, 1, bias=False)
    assert gradient_of(net.weight.sum() * 3, net) == ([torch.full((1, 1), 3.0)], "")
    assert gradient_of(net.weight.sum() * 1e30 * 1e30, net)[1] == "it overflows"
    assert gradient_of(torch.zeros(()), net) == ([torch.zeros(1, 1)], "")


def test_a_run_that_diverges_is_looked_at_from_its_last_checkpoint(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resume=RUN debug=true; without it the run is again what it was."""

    def take(state: TrainState, batch: Batch, *rest: Any) -> Any:
        return train_step(state, poisoned(batch) if state.step == 3 else batch, *rest)

    run_dir = tmp_path / "run"
    words = ["model.backbone=test_vit", "steps=6", "checkpoint_every=2"]
    monkeypatch.setattr(train.loop, "train_step", take)
    with pytest.raises(DivergedError, match="first at step 3"):
        run(config(freihand, run_dir, *words))
    before, mine = DebugStep.__call__, f"mano={freihand.mano}"

    def look(self: DebugStep, state: TrainState, batch: Batch, *rest: Any) -> Any:
        return before(self, state, poisoned(batch) if state.step == 3 else batch, *rest)

    monkeypatch.setattr(DebugStep, "__call__", look)
    with pytest.raises(DivergedError, match="debug: in step 3 the loss is not finite"):
        run(resumed(run_dir, mine, "debug=true"))
    monkeypatch.setattr(train.loop, "train_step", train_step)
    assert run(resumed(run_dir, mine)) == 0
    payload = read_checkpoint(run_dir, say=pytest.fail)
    assert payload["step"] == 6
    assert '"debug": false' in payload["config"]


def test_several_ranks_are_refused(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.run.joined_ranks", lambda _: nullcontext(Ranks(world=2)))
    with pytest.raises(ValueError, match="debug=true is for one process, got 2 ranks"):
        run(config(freihand, tmp_path, "debug=true"))
