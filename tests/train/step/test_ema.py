"""Averaged weights: the plain formula, whatever is frozen; no memory for what is not trained."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import train.loop
from model.regressor.config import Head, RegressorConfig
from model.regressor.net import HandRegressor
from tests.conftest import SampleStore
from tests.train.state.test_checkpoint import config
from tests.train.test_run import weights
from train.config import RunConfig
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.step import ema as module
from train.step.ema import evaluation_copy, follow, load_average, update_average
from train.step.stages import resolve_stages
from train.step.step import build_state, enter_stage, train_step

DECAY = 0.9


def whole_copy(ema: nn.Module, trained: nn.Module, step: int) -> None:
    """Average a whole copy of a model, all buffers copied: the plain way, which it must equal."""
    weight = 1.0 - torch.clamp((1.0 + torch.tensor(step)) / (10.0 + torch.tensor(step)), max=DECAY)
    with torch.no_grad():
        for averaged, follows in zip(ema.parameters(), trained.parameters(), strict=True):
            averaged.add_((follows - averaged) * weight)
        for kept, buffer in zip(ema.buffers(), trained.buffers(), strict=True):
            kept.copy_(buffer)


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def step_of(net: nn.Module, seed: int) -> None:
    """Change what is trained, and the statistics of norms in training mode."""
    g = torch.Generator().manual_seed(seed)
    net(torch.randn(6, 3, generator=g))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=g))


def pointers(net: nn.Module) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in net.state_dict().items()}


def test_averaged_weights_follow_the_formula() -> None:
    g = torch.Generator().manual_seed(0)
    net = nn.BatchNorm1d(3)
    ema = evaluation_copy(net)
    average = follow(ema, net)
    expected = ema.weight.detach().double().clone()
    for step in range(30):
        with torch.no_grad():
            net.weight.copy_(torch.randn(3, generator=g))
            mean_of(net).copy_(torch.randn(3, generator=g))
        update_average(average, torch.tensor(step), 0.5)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.weight.detach().double()
        assert torch.allclose(ema.weight.detach().double(), expected, atol=1e-6)
        assert torch.equal(mean_of(ema), mean_of(net))


def mean_of(norm: nn.BatchNorm1d) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


@pytest.mark.parametrize("piece", [1, 40, module.PIECE_BYTES])
def test_freezing_and_thawing_changes_no_average(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Bit for bit that of a whole copy, with parts trained, frozen and trained again."""
    monkeypatch.setattr(module, "PIECE_BYTES", piece)
    net = a_model()
    plain = copy.deepcopy(net).eval()
    ema = evaluation_copy(net)
    step = 0
    for trained in ("2", "02", "0", "12", "2", ""):
        for number, part in enumerate(net):
            part.requires_grad_(str(number) in trained)
        average = follow(ema, net)
        for _ in range(5):
            step_of(net, step)
            update_average(average, torch.tensor(step), DECAY)
            whole_copy(plain, net, step)
            step += 1
        for name, value in plain.state_dict().items():
            assert torch.equal(ema.state_dict()[name], value), (trained, name)
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert not any(part.training for part in ema.modules())


def test_what_is_not_trained_has_no_memory_of_its_own() -> None:
    net = a_model()
    net[0].requires_grad_(requires_grad=False)
    ema = evaluation_copy(net)
    assert pointers(ema) == pointers(net)
    average = follow(ema, net)
    theirs, ours = pointers(net), pointers(ema)
    assert {name for name in ours if ours[name] == theirs[name]} == {
        name for name in ours if name.startswith("0.") or "running" in name or "num_batches" in name
    }
    assert [len(pair[0]) for pair in average.pieces] == [4]  # one call for all of a type

    net[0].requires_grad_(requires_grad=True)  # a stage that trains it: its own from here on
    net[2].requires_grad_(requires_grad=False)  # and one that has not moved: shared again
    follow(ema, net)
    ours = pointers(ema)
    assert ours["0.weight"] != theirs["0.weight"]
    assert ours["2.weight"] == theirs["2.weight"]


def test_types_are_averaged_apart() -> None:
    net = a_model()
    net[2].double()
    average = follow(evaluation_copy(net), net)
    assert [{value.dtype for value in ours} for ours, _ in average.pieces] == [
        {torch.float32},
        {torch.float64},
    ]


def test_an_update_takes_no_copy_of_the_model() -> None:
    """The differences of a model of 60 pieces are in memory a few at a time."""
    from train.step.live_bytes import LiveBytes

    net = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(60)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", 4 * 256 * 256 * 4)
        ema = evaluation_copy(net)
        average = follow(ema, net)
    update_average(average, torch.tensor(0), DECAY)
    bytes_of_model = sum(parameter.nbytes for parameter in net.parameters())
    with LiveBytes() as live:
        update_average(average, torch.tensor(1), DECAY)
    seen = sum(p.nbytes for p in ema.parameters())  # the averages themselves are returned
    assert live.peak - seen < 0.2 * bytes_of_model


def test_a_checkpoint_of_a_whole_copy_is_put_back_into_a_shared_one() -> None:
    """An old file, in which nothing was shared: the model keeps its weights, the copy gets its."""
    net = a_model()
    old = copy.deepcopy(net).eval()
    for step in range(3):
        step_of(net, step)
        whole_copy(old, net, step)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net[0].requires_grad_(requires_grad=False)
    ema = evaluation_copy(net)
    load_average(ema, net, old.state_dict())
    for name, value in old.state_dict().items():
        assert torch.equal(ema.state_dict()[name], value), name
        assert torch.equal(net.state_dict()[name], before[name]), name
    assert pointers(ema)["0.weight"] != pointers(net)["0.weight"]  # its average has a way to go
    with pytest.raises(RuntimeError, match="Missing key"):
        load_average(ema, net, {"0.weight": net.get_parameter("0.weight")})


STAGES = [
    "stages.head.steps=3",
    "stages.head.freeze=[backbone]",
    "stages.all.steps=3",
    "stages.tune.steps=3",
    "stages.tune.train=[mlp]",
    "stages.last.steps=2",
]


def test_a_run_averages_as_with_a_whole_copy(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through stages that freeze and train, and through a resume in the middle of each."""
    plain: list[nn.Module] = []

    def look(state: Any, *rest: Any) -> Any:
        if not plain:
            plain.append(copy.deepcopy(state.model).eval())
        step = state.step
        output = train_step(state, *rest)
        whole_copy(plain[0], state.model, step)
        return output

    monkeypatch.setattr(train.loop, "train_step", look)
    words = [*STAGES, f"ema_decay={DECAY}", "checkpoint_every=1", "keep_checkpoints=20"]
    assert run(config(freihand, tmp_path / "whole", *words)) == 0
    kept = read_checkpoint(tmp_path / "whole", say=pytest.fail)["ema"]
    assert list(kept) == list(plain[0].state_dict())
    for name, value in plain[0].state_dict().items():
        assert torch.equal(kept[name], value), name

    class Killed(BaseException):
        pass

    def die(state: Any, *rest: Any) -> Any:
        if state.step in stops:
            stops.remove(state.step)
            raise Killed
        return train_step(state, *rest)

    stops = [2, 4, 7, 10]
    monkeypatch.setattr(train.loop, "train_step", die)
    for _ in range(len(stops)):
        with pytest.raises(Killed):
            run(config(freihand, tmp_path / "parts", *words))
    assert run(config(freihand, tmp_path / "parts", *words)) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def small(backbone: str = "test_resnet") -> HandRegressor:
    settings = RegressorConfig(backbone=backbone, pretrained=False, head=Head.joints, hidden=8)
    return HandRegressor(settings, input_px=32, mano=None)


def test_a_frozen_backbone_is_shared_in_a_run() -> None:
    from pipeline.app.cli import compose

    words = ["store=x", "stages.a.steps=1", "stages.a.freeze=[backbone]", "stages.b.steps=1"]
    settings: RunConfig = compose(RunConfig, words)
    net = small()
    state = build_state(net, settings, 4)
    first, second = resolve_stages(settings, lambda _: 1)
    enter_stage(state, first, settings)
    shared = {
        name
        for name, p in state.ema.named_parameters()
        if p.data_ptr() == net.get_parameter(name).data_ptr()
    }
    assert shared == {f"backbone.{name}" for name, _ in net.backbone.named_parameters()}
    enter_stage(state, second, settings)
    assert not set(pointers(state.ema).values()) & {p.data_ptr() for p in net.parameters()}


def test_no_buffer_is_copied_in_a_step() -> None:
    """Constants of frozen norms and statistics are the model's own."""
    net = a_model()
    average = follow(evaluation_copy(net), net)
    calls: list[str] = []

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Count():  # type: ignore[no-untyped-call]
        update_average(average, torch.tensor(0), DECAY)
    assert not [name for name in calls if "copy" in name]
    assert len([name for name in calls if "foreach" in name]) == 3
