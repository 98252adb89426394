"""No step of a recipe waits for its device: what must know a value fails where there are none."""

import contextlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.hand import JointSet
from model.mano.files import load_mano
from pipeline.app.cli import compose
from tests.conftest import SampleStore
from tests.train.test_run import OTHER_STORES
from train.build import build_model
from train.config import RunConfig
from train.step.peak import _blank
from train.step.stages import resolve_stages
from train.step.step import TrainState, build_state, enter_stage, train_step

RECIPES = sorted(path.stem for path in RunConfig.EXPERIMENTS.glob("*.yaml") if path.stem != "soak")
META = torch.device("meta")


class Watch(TorchDispatchMode):
    """Counts the operators of a step, and names those that join the device to the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.counts[name] += 1
        found = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self.mixed.append(name)
        return found


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the steps run on torch's meta device, which has shapes and no numbers."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "equal", lambda *_: True)  # of a stage's beginning, which may wait
    # torch's fused AdamW, which is meant for graphs, has no version for this device.
    adam = sys.modules["torch.optim.adam"]  # the package hides the module of that name
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *_, **__: None)


def begun(recipe: str, mano: Path) -> tuple[TrainState, Any, Any, Any]:
    """A state, blank batch, configuration and first stage of a recipe, on no device."""
    needed = ["store=s", "run_dir=r", f"mano={mano}", "compile=false", "model.pretrained=false"]
    needed.append("precision=fp32")  # no autocast there
    others = OTHER_STORES.get(recipe, [])
    config = compose(RunConfig, [f"experiment={recipe}", *needed, "batch_size=4", *others])
    assert isinstance(config, RunConfig)
    sets = frozenset({JointSet.smplx})
    model = build_model(config, load_mano(mano), sets, load_weights=False).to(META)
    state = build_state(model, config, config.pipeline.batch_size)
    stage = resolve_stages(config, lambda _: 10)[0]
    enter_stage(state, stage, config)
    return state, _blank(state, stage.pipeline, stage.pipeline.batch_size), config, stage


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_reads_nothing_back(
    freihand: SampleStore, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, batch, config, stage = begun(recipe, freihand.mano)
    modes: list[bool] = []

    def noted(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: FBT001, FBT002
        modes.append(mode)
        return module

    monkeypatch.setattr(nn.Module, "train", noted)
    train_step(state, batch, config, stage)  # it makes the optimiser's state
    with Watch() as watch:
        train_step(state, batch, config, stage)
    assert not modes  # nobody walks the modules
    # Learning rates and what Python numbers become are filled in by kernels.
    allowed = ("aten.fill_.Scalar", "aten._foreach_add_.ScalarList")
    assert not [name for name in watch.mixed if name not in allowed]
    assert not [name for name in watch.counts if "local_scalar" in name or "nonzero" in name]


@pytest.mark.usefixtures("without_values")
def test_a_planted_wait_is_found(freihand: SampleStore) -> None:
    state, batch, config, stage = begun("quickstart", freihand.mano)
    plain = state.total_loss

    def waits(*args: Any, **options: Any) -> Any:
        total, terms = plain(*args, **options)
        if bool(total > 0):
            total = total * 2
        return total, terms

    state.total_loss = waits
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta"):
        train_step(state, batch, config, stage)
