"""One step: accumulation, averaged weights, activations computed again."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from model.families import build_network
from model.mano.files import load_mano
from model.regressor.net import HandRegressor
from pipeline.batch import TENSORS, blank_batch
from pipeline.loader import Loader
from tests.conftest import SampleStore
from tests.train.device.two_ranks import Toy
from tests.train.test_run import config
from train.step import step as step_module
from train.step.peak import measure_need, rehearse
from train.step.stages import resolve_stages
from train.step.step import build_state, compile_step, train_step

CPU = torch.device("cpu")


def gradients_of(
    data: SampleStore, tmp_path: Path, *words: str
) -> tuple[dict[str, torch.Tensor], float, dict[str, float]]:
    """The gradient of the first step, before the update; its loss and terms."""
    settings = config(data, tmp_path, "model.backbone=test_vit", *words)
    loader = Loader(settings.pipeline, device=CPU)
    torch.manual_seed(0)
    model = build_network(settings.model, input_px=32, mano=load_mano(data.mano))
    state = build_state(model, settings, 8)
    (stage,) = resolve_stages(settings, loader.steps_per_epoch)
    found: dict[str, torch.Tensor] = {}
    state.optimizer.register_step_pre_hook(
        lambda *_: found.update(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    )
    output = train_step(state, next(iter(loader)), settings, stage)
    means = output.terms.values.mean(1).tolist()
    terms = dict(zip(output.terms.names, means, strict=True))
    return found, float(output.loss), terms


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_is_the_same_step(
    freihand: SampleStore, tmp_path: Path, parts: int
) -> None:
    whole = gradients_of(freihand, tmp_path, "optim.clip_norm=1e9")
    split = gradients_of(freihand, tmp_path, "optim.clip_norm=1e9", f"accumulate={parts}")
    assert split[1] == pytest.approx(whole[1], rel=1e-5)
    assert split[2] == pytest.approx(whole[2], rel=1e-5)
    for name, gradient in whole[0].items():
        scale = gradient.abs().max()
        assert (split[0][name] - gradient).abs().max() <= 1e-4 * scale + 1e-7, name


def test_activations_computed_again_give_the_same_gradient(
    freihand: SampleStore, tmp_path: Path
) -> None:
    kept = gradients_of(freihand, tmp_path)
    again = gradients_of(freihand, tmp_path, "model.checkpoint_activations=true")
    assert kept[1] == again[1]
    assert all(torch.allclose(kept[0][n], again[0][n], rtol=1e-5, atol=1e-7) for n in kept[0])


def test_a_rehearsal_takes_real_steps_on_blank_batches(
    freihand: SampleStore, tmp_path: Path
) -> None:
    settings = config(freihand, tmp_path)
    model = build_network(settings.model, input_px=32, mano=load_mano(freihand.mano))
    assert isinstance(model, HandRegressor)
    before = next(model.mlp.parameters()).clone()
    rehearse(model, settings)
    assert torch.isfinite(next(model.mlp.parameters())).all()
    assert measure_need(model, settings).bytes == 0  # on a CPU nothing is measured
    assert before.shape == next(model.mlp.parameters()).shape


def test_a_blank_batch_has_the_shapes_of_a_real_one(freihand: SampleStore, tmp_path: Path) -> None:
    real = next(iter(Loader(config(freihand, tmp_path).pipeline, device=CPU)))
    blank = blank_batch(real.image, num_hands=1)
    for name, ours, theirs in zip(TENSORS, blank.tensors(), real.tensors(), strict=True):
        assert ours.shape == theirs.shape, name
        assert ours.dtype == theirs.dtype, name
    assert not (blank.has_joints | blank.has_mano | blank.has_beta).any()
    assert replace(blank, image=real.image).image is real.image


def test_more_batch_sizes_than_torch_recompiles_by_default(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook or a sweep: losses may not raise, networks not run eager without a word."""
    settings = config(freihand, tmp_path)
    state = build_state(Toy("vit"), settings, 8)
    seen: list[int] = []

    def loss(values: torch.Tensor) -> torch.Tensor:
        return values.sum()

    def traced(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        seen.append(1)
        return graph.forward

    monkeypatch.setattr(step_module, "total_loss", loss)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traced))
    # torch's own: importing timm's optimisers happens to change it
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    compile_step(state)
    call: Any = state.total_loss
    for size in range(2, 14):
        assert call(torch.ones(size)) == size
    assert len(seen) == 12
    torch._dynamo.reset()
