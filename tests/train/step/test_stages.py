"""Stages: what they change, and that a run through them resumes bitwise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train.loop
from model.regressor.config import Head, Readout, RegressorConfig
from model.regressor.net import HandRegressor
from pipeline.app.cli import compose
from tests.conftest import SampleStore
from tests.train.state.test_checkpoint import config
from tests.train.test_run import losses, weights
from train.config import OptimConfig, RunConfig, StageConfig
from train.device.distributed import Ranks
from train.run import main as run
from train.step.optim import build_optimizer, set_learning_rate
from train.step.stages import (
    Stage,
    freeze,
    frozen_by,
    require_trainable,
    resolve_stages,
    stage_at,
    trainable_names,
    training_mode,
)
from train.step.step import train_step


def small(backbone: str = "resnet10t") -> HandRegressor:
    settings = RegressorConfig(backbone=backbone, pretrained=False, head=Head.joints, hidden=8)
    return HandRegressor(settings, input_px=32, mano=None)


# --- stages ---------------------------------------------------------------------------------------


def test_stages_follow_each_other() -> None:
    words = [
        "store=x",
        "batch_size=64",
        "stages.head.steps=100",
        "stages.head.freeze=[backbone]",
        "stages.head.augment=0",
        "stages.all.epochs=2.5",
        "stages.all.lr=1e-4",
        "stages.all.batch_size=32",
        "stages.all.loss={theta: 2.0, vertices: 0}",
    ]
    settings = compose(RunConfig, words)
    head, everything = resolve_stages(settings, lambda pipeline: 640 // pipeline.batch_size)
    assert (head.name, head.begin, head.end, head.steps) == ("head", 0, 100, 100)
    assert (everything.begin, everything.end) == (100, 150)
    assert head.lr == settings.optim.lr
    assert everything.lr == 1e-4
    assert head.pipeline.augment.is_off
    assert everything.pipeline.augment == settings.pipeline.augment
    assert (head.pipeline.batch_size, everything.pipeline.batch_size) == (64, 32)
    assert (everything.loss.theta, everything.loss.vertices) == (2.0, 0.0)
    assert head.loss == settings.loss
    assert stage_at((head, everything), 99) is head
    assert stage_at((head, everything), 100) is everything
    assert stage_at((head, everything), 999) is everything


def test_a_run_without_stages_is_one() -> None:
    settings = compose(RunConfig, ["store=x", "steps=7"])
    (whole,) = resolve_stages(settings, lambda _: 1)
    assert (whole.begin, whole.end, whole.freeze) == (0, 7, ())
    assert whole.pipeline == settings.pipeline


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages.a.lr=1"], "stages.a needs steps or epochs, one of them"),
        (["stages.a.steps=1", "stages.a.epochs=1"], "stages.a needs steps or epochs"),
        (["stages.a.steps=1", "stages.a.loss={thetta: 1}"], "no term 'thetta'; there are joints"),
        (["stages.a.steps=-1"], "must not be negative, got -1"),
        (["stages.a.steps=1", "stages.a.lr=0"], "lr must be positive, got 0"),
        (
            ["stages.a.steps=1", "stages.a.freeze=[backbone]", "stages.a.train=[mlp]"],
            r"or train=\[what alone is trained\], not both; got freeze=\[backbone\] and train=",
        ),
    ],
)
def test_bad_stages_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_stages(compose(RunConfig, ["store=x", *words]), lambda _: 1)


def test_augmentation_never_leaves_its_limits() -> None:
    settings = compose(RunConfig, ["store=x"])
    settings.stages["wild"] = StageConfig(steps=1, augment=100.0)
    (wild,) = resolve_stages(settings, lambda _: 1)
    assert wild.pipeline.augment.rotation_deg == 180
    assert wild.pipeline.augment.scale == 0.5


def test_frozen_modules_are_neither_trained_nor_in_training_mode() -> None:
    model = small()
    trainable = trainable_names(model)
    freeze(model, ("backbone",), trainable)
    training_mode(model, ("backbone",))
    assert {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"mlp"}
    assert not any(module.training for module in model.backbone.modules())
    assert model.mlp.training
    freeze(model, (), trainable)
    training_mode(model, ())
    assert trainable_names(model) == trainable
    assert all(module.training for module in model.modules())
    with pytest.raises(
        ValueError, match=r"no parameters in a module 'back'; there are backbone, mlp"
    ):
        freeze(model, ("back",), trainable)


def test_a_later_stage_is_checked_at_the_start(freihand: SampleStore, tmp_path: Path) -> None:
    first = ["stages.a.steps=1"]
    for word, message in (
        ("stages.b.freeze=[backbone,mlp]", r"stages\.b\.freeze leaves nothing to train"),
        ("stages.b.freeze=[bakbone]", "no parameters in a module 'bakbone'"),
        ("stages.b.batch_size=65", "batch_size must be at most 64"),
    ):
        with pytest.raises(ValueError, match=message):
            run(config(freihand, tmp_path, *first, "stages.b.steps=1", word))
    settings = compose(RunConfig, ["store=x", "stages.a.steps=1", "stages.a.freeze=[backbone]"])
    (frozen,) = resolve_stages(settings, lambda _: 1)
    require_trainable(small(), frozen, Ranks(world=2))
    (whole,) = resolve_stages(compose(RunConfig, ["store=x"]), lambda _: 1)
    with pytest.raises(ValueError, match=r"BatchNorms .* in training mode"):
        require_trainable(small(), whole, Ranks(world=2))


def stage_of(*words: str) -> Stage:
    (stage,) = resolve_stages(
        compose(RunConfig, ["store=x", "stages.a.steps=1", *words]), lambda _: 1
    )
    return stage


BUT_LAYER4 = "backbone.conv1,backbone.bn1,backbone.layer1,backbone.layer2,backbone.layer3"


@pytest.mark.parametrize(
    ("train", "freeze_instead"),
    [
        ("mlp", "backbone"),
        ("backbone", "mlp"),
        ("mlp,backbone.layer4", BUT_LAYER4),
        ("mlp.2.bias", "backbone,mlp.0,mlp.2.weight"),
    ],
)
def test_train_is_freeze_of_the_complement(train: str, freeze_instead: str) -> None:
    found = frozen_by(small(), stage_of(f"stages.a.train=[{train}]"))
    assert set(found) == set(freeze_instead.split(","))
    kept, frozen = small(), small()
    for model, word in ((kept, f"train=[{train}]"), (frozen, f"freeze=[{freeze_instead}]")):
        names = frozen_by(model, stage_of(f"stages.a.{word}"))
        freeze(model, names, trainable_names(model))
        training_mode(model, names)
    for one, other in zip(kept.named_parameters(), frozen.named_parameters(), strict=True):
        assert (one[0], one[1].requires_grad) == (other[0], other[1].requires_grad)
    assert trainable_names(kept) == {
        name
        for name, _ in kept.named_parameters()
        if any(f"{name}.".startswith(f"{one}.") for one in train.split(","))
    }
    for module, same in zip(kept.modules(), frozen.modules(), strict=True):
        assert module.training == same.training


def test_a_run_of_train_is_that_of_freeze_to_the_bit(freihand: SampleStore, tmp_path: Path) -> None:
    words = ["stages.first.steps=2", "stages.second.steps=3"]
    pairs = {"train": "[mlp,backbone.layer4]", "freeze": f"[{BUT_LAYER4}]"}
    for name, names in pairs.items():
        settings = config(freihand, tmp_path / name, *words, f"stages.second.{name}={names}")
        assert run(settings) == 0
    one, other = weights(tmp_path / "train"), weights(tmp_path / "freeze")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "train") == losses(tmp_path / "freeze")


def test_a_name_that_fits_nothing_is_answered_with_the_nearest() -> None:
    there = "there are backbone, mlp"
    for key, name, message in (
        ("train", "backbone.layer5", rf"{there} \(did you mean 'backbone.layer\d'\?\)$"),
        ("freeze", "mpl", rf"{there} \(did you mean 'mlp'\?\)$"),
        ("train", "head", f"{there}$"),
    ):
        expected = rf"^stages\.a\.{key}: no parameters in a module '{name}'; {message}"
        with pytest.raises(ValueError, match=expected):
            require_trainable(small(), stage_of(f"stages.a.{key}=[{name}]"), Ranks())


def test_modes_are_set_once_for_a_stage(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step walks over the modules, also after validation, pictures and checkpoints."""
    calls: list[int] = []
    modes: list[tuple[bool, bool]] = []
    told, step = nn.Module.train, [0]

    def count(self: nn.Module, mode: bool = True) -> nn.Module:  # noqa: FBT001, FBT002
        calls.append(step[0])
        return told(self, mode)

    def look(state: Any, *rest: Any) -> Any:
        step[0] = state.step + 1
        output = train_step(state, *rest)
        modes.append((state.model.backbone.training, state.model.mlp.training))
        step[0] = 0
        return output

    monkeypatch.setattr(nn.Module, "train", count)
    monkeypatch.setattr(train.loop, "train_step", look)
    words = ["stages.a.steps=4", "stages.a.freeze=[backbone]", "stages.b.steps=4"]
    words += ["validation.split=evaluation", "validation.every=2", "pictures_every=3"]
    assert run(config(freihand, tmp_path / "run", *words)) == 0
    assert calls
    assert not [number for number in calls if number]
    assert modes == [(False, True)] * 4 + [(True, True)] * 4


def test_what_was_never_trained_stays_so() -> None:
    model = small()
    dict(model.named_parameters())["mlp.0.bias"].requires_grad_(False)  # noqa: FBT003
    trainable = trainable_names(model)
    freeze(model, ("backbone",), trainable)
    freeze(model, (), trainable)
    assert trainable_names(model) == trainable
    assert "mlp.0.bias" not in trainable


STAGES = [
    "stages.head.steps=4",
    "stages.head.freeze=[backbone]",
    "stages.all.steps=5",
    "stages.all.batch_size=16",
    "stages.all.lr=1e-3",
    "stages.fine.steps=3",
    "stages.fine.augment=0",
]


def test_a_run_goes_through_its_stages(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, bool]] = []

    def look(state: Any, batch: Any, settings: Any, stage: Any) -> Any:
        before = next(state.model.backbone.parameters()).clone()
        output = train_step(state, batch, settings, stage)
        moved = not torch.equal(before, next(state.model.backbone.parameters()))
        seen.append((stage.name, len(batch), moved))
        return output

    monkeypatch.setattr(train.loop, "train_step", look)
    assert run(config(freihand, tmp_path / "run", *STAGES)) == 0
    assert seen == [("head", 8, False)] * 4 + [("all", 16, True)] * 5 + [("fine", 8, True)] * 3
    assert sorted(losses(tmp_path / "run")) == list(range(1, 13))


@pytest.mark.parametrize("stop", [4, 7, 9])
def test_a_run_stopped_in_any_stage_resumes_bitwise(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    assert run(config(freihand, tmp_path / "whole", *STAGES)) == 0

    class Killed(BaseException):
        pass

    def die(state: Any, *rest: Any) -> Any:
        if state.step == stop:
            raise Killed
        return train_step(state, *rest)

    words = [*STAGES, "checkpoint_every=1"]
    monkeypatch.setattr(train.loop, "train_step", die)
    with pytest.raises(Killed):
        run(config(freihand, tmp_path / "parts", *words))
    monkeypatch.setattr(train.loop, "train_step", train_step)
    assert run(config(freihand, tmp_path / "parts", *words)) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


# --- parameter groups -----------------------------------------------------------------------------


def groups_of(model: nn.Module, **words: Any) -> dict[str, tuple[float, float]]:
    """(learning rate over the schedule's, weight decay) of every parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(**words))
    return {
        names[id(parameter)]: (group["lr_share"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_every_trained_parameter_is_in_one_group() -> None:
    model = small()
    assert set(groups_of(model)) == {name for name, _ in model.named_parameters()}
    dict(model.named_parameters())["mlp.0.bias"].requires_grad_(False)  # noqa: FBT003
    assert "mlp.0.bias" not in groups_of(model)


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    found = groups_of(small("test_vit"), weight_decay=0.05)
    for name, (_, decay) in found.items():
        is_plain = name.endswith(("bias", "pos_embed", "cls_token")) or "norm" in name
        assert decay == (0.0 if is_plain else 0.05), name
    assert {decay for _, decay in found.values()} == {0.0, 0.05}


@pytest.mark.parametrize("backbone", ["resnet10t", "test_vit"])
def test_lower_layers_learn_slower(backbone: str) -> None:
    import timm

    found = groups_of(small(backbone), backbone_lr=0.5, layer_decay=0.8)
    share = {name: lr for name, (lr, _) in found.items()}
    assert share["mlp.0.weight"] == 1.0
    stem = "backbone.conv1.0.weight" if backbone == "resnet10t" else "backbone.pos_embed"
    last = "backbone.layer4.0.conv1.weight" if backbone == "resnet10t" else "backbone.norm.weight"
    model: Any = timm.create_model(backbone)
    layers = len(model.blocks) if backbone == "test_vit" else 4
    assert share[last] == pytest.approx(0.5)
    assert share[stem] == pytest.approx(0.5 * 0.8**layers)
    order = sorted(set(share.values()))
    assert order == [pytest.approx(0.5 * 0.8**k) for k in range(layers, -1, -1)] + [1.0]


RESNET50 = {
    **dict.fromkeys(("conv1", "bn1"), 16),
    **{f"layer1.{i}": 15 - i for i in range(3)},
    **{f"layer2.{i}": 12 - i for i in range(4)},
    **{f"layer3.{i}": 8 - i for i in range(6)},
    **{f"layer4.{i}": 2 - i for i in range(3)},
}
VIT_SMALL = {
    **dict.fromkeys(("cls_token", "pos_embed", "patch_embed"), 12),
    **{f"blocks.{i}": 11 - i for i in range(12)},
    "norm": 0,
}

EFFICIENTNET = {
    **dict.fromkeys(("conv_stem", "bn1"), 5),
    **{f"blocks.{i}": 4 - i for i in range(5)},
    **dict.fromkeys(("conv_head", "bn2"), 0),
}


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("resnet50", RESNET50),
        ("vit_small_patch16_224", VIT_SMALL),
        ("vit_small_patch14_dinov2", VIT_SMALL),
        # what stands behind the last block is the highest layer, not the stem
        ("test_efficientnet", EFFICIENTNET),
    ],
)
def test_layers_of_a_backbone(backbone: str, layers: dict[str, int]) -> None:
    """``layers``: how many layers lie above each part."""
    import timm

    model = nn.ModuleDict({"backbone": timm.create_model(backbone, num_classes=0)})
    left = {name: share for name, (share, _) in groups_of(model, layer_decay=0.5).items()}
    assert left.keys() == {name for name, _ in model.named_parameters()}
    for part, above in layers.items():
        own = {n for n in left if f"{n}.".startswith(f"backbone.{part}.")}
        assert own, part
        assert {left.pop(name) for name in own} == {0.5**above}, part
    assert not left


def test_what_narrows_a_grid_learns_as_the_highest_layer() -> None:
    settings = RegressorConfig(
        backbone="resnet10t", pretrained=False, head=Head.joints, hidden=8, readout=Readout.grid
    )
    model = HandRegressor(settings, input_px=32, mano=None)
    found = groups_of(model, backbone_lr=0.5, layer_decay=0.8)
    assert found["backbone.1.weight"][0] == found["backbone.0.layer4.0.conv1.weight"][0] == 0.5
    assert found["backbone.0.conv1.0.weight"][0] == pytest.approx(0.5 * 0.8**4)


def test_a_backbone_without_layers_of_its_own_learns_slower_below() -> None:
    import timm

    model = nn.ModuleDict({"backbone": timm.create_model("pit_ti_224", num_classes=0)})
    found = groups_of(model, layer_decay=0.5)
    shares = [found[name][0] for name, _ in model.named_parameters()]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] == 1


def test_rates_are_set_in_two_calls() -> None:
    """Layer decay makes dozens of groups; each has its share of the rate, rounded once."""
    shares = [0.75**i for i in range(26)]
    optimizer = torch.optim.AdamW(
        [
            {"params": [torch.zeros(1)], "lr": torch.tensor(1.0), "lr_share": share}
            for share in shares
        ],
        fused=True,
    )
    before = [group["lr"].data_ptr() for group in optimizer.param_groups]
    calls: list[str] = []

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    for lr in (3e-4, 1.7e-5):
        calls.clear()
        with Count():  # type: ignore[no-untyped-call]
            set_learning_rate(optimizer, lr)
        assert len(calls) <= 2
        expected = [torch.tensor(lr * share) for share in shares]
        assert [group["lr"] for group in optimizer.param_groups] == expected
    assert [group["lr"].data_ptr() for group in optimizer.param_groups] == before


def test_shares_of_the_peak() -> None:
    """The longest name counts; the backbone's other layers keep what they have without shares."""
    words: dict[str, Any] = {"backbone_lr": 0.5, "layer_decay": 0.8}
    plain = groups_of(small(), **words)
    shares = {"mlp": 0.3, "mlp.2": 0.7, "backbone.layer4": 0.25, "backbone.layer1.0.conv1": 1.0}
    found = groups_of(small(), **words, shares=shares)
    expected = {
        "mlp.0.weight": 0.3,
        "mlp.0.bias": 0.3,
        "mlp.2.weight": 0.7,
        "mlp.2.bias": 0.7,
        "backbone.layer4.0.conv1.weight": 0.25,
        "backbone.layer1.0.conv1.weight": 0.8**3,
    }
    for name, share in expected.items():
        assert found[name][0] == pytest.approx(share), name
    others = [n for n in plain if not n.startswith(("mlp", "backbone.layer4", "backbone.layer1.0"))]
    assert len(others) > 5
    assert all(found[name] == plain[name] for name in others)
    assert {n: decay for n, (_, decay) in found.items()} == {n: d for n, (_, d) in plain.items()}
    assert groups_of(small(), shares={"backbone": 0.1})["backbone.conv1.0.weight"][0] == 0.1


def test_shares_are_what_the_optimiser_steps_with(freihand: SampleStore, tmp_path: Path) -> None:
    """At the command line, with dots in names; a resumed run has them as well."""
    words = ["optim.shares={backbone: 0.01, backbone.layer4: 0.5}", "steps=2"]
    settings = config(freihand, tmp_path / "run", *words)
    assert settings.optim.shares == {"backbone": 0.01, "backbone.layer4": 0.5}
    assert run(settings) == 0
    assert run(config(freihand, tmp_path / "run", words[0], "steps=3")) == 0
    assert run(compose(RunConfig, [f"resume={tmp_path / 'run'}", "steps=4"])) == 0
    before, after = small("test_resnet"), small("test_resnet")
    after.load_state_dict(before.state_dict())
    optimizer = build_optimizer(after, settings.optim)
    for parameter in after.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    moved = {
        name: float((new - old).detach().abs().max()) / settings.optim.lr
        for (name, new), old in zip(after.named_parameters(), before.parameters(), strict=True)
    }
    for name, step in moved.items():
        is_last, is_backbone = name.startswith("backbone.layer4"), name.startswith("backbone.")
        assert step == pytest.approx(0.5 if is_last else 0.01 if is_backbone else 1.0, rel=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"shares": {"mlp": 0.0}}, r"optim.shares.mlp must lie in \(0, 1\], got 0"),
        ({"shares": {"mlp": 1.5}}, r"optim.shares.mlp must lie in \(0, 1\], got 1.5"),
        (
            {"shares": {"backbone": 0.1}, "backbone_lr": 0.5},
            "optim.shares.backbone and optim.backbone_lr are the same share: give one",
        ),
        (
            {"shares": {"mpl": 0.5}},
            r"optim.shares: no parameters in a module 'mpl'; .* \(did you mean 'mlp'\?\)",
        ),
    ],
)
def test_bad_shares_are_named(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_of(small(), **words)


def test_bad_shares_are_named_before_the_store_is_read(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        pytest.fail("the cache was filled first")

    monkeypatch.setattr("train.run.Loader", opened)
    with pytest.raises(
        ValueError, match=r"optim\.shares: no parameters in a module 'hand_encoder'"
    ):
        run(config(freihand, tmp_path, "optim.shares={hand_encoder: 0.5}"))


def test_steps_beside_stages_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps=7 is not read .*: set stages\.a\.steps$"):
        compose(RunConfig, ["store=x", "stages.a.steps=1", "steps=7"])
