"""Every recipe composes, teaches in its first lines, and trains (with a small network)."""

from pathlib import Path
from typing import Any

import pytest

from model.regressor.config import Readout
from pipeline.app.cli import compose
from tests.conftest import SampleStore
from tests.pipeline.hand_store import hand_store
from tests.preprocess.datasets import write_mano
from tests.train.test_run import log_of
from train.config import RunConfig
from train.run import main as run

RECIPES = sorted(RunConfig.EXPERIMENTS.glob("*.yaml"))
PUBLISHED = (
    "freihand_resnet50", "freihand_vits", "dexycb_resnet50", "dexycb_vits", "ho3d_resnet50",
    "interhand", "mix", "arctic_baseline", "freihand_handformer", "freihand_vitl", "ho3d_finetune",
)  # fmt: skip
SPLITS = {
    "dexycb": ("manopth", "s0_train", "s0_val"),
    "ho3d": ("ho3d", "train_holdin", "train_holdout"),
}
MIXED = {"mix": "interhand", "ho3d_finetune": "freihand"}
"""The second store of a recipe."""
"""Joint set, training and validation split by dataset, as its source names them."""


def test_the_recipes_that_the_readme_promises_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {*PUBLISHED, "quickstart", "overfit", "soak"}


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES])
def test_a_recipe_opens_with_its_command_and_time(recipe: str) -> None:
    first, command, *rest = (RunConfig.EXPERIMENTS / f"{recipe}.yaml").read_text().splitlines()
    assert first == "# @package _global_"
    assert command.startswith(f"# python -m train run experiment={recipe} store=")
    opening = "\n".join(line for line in rest if line.startswith("#"))
    assert "Time:" in opening
    if recipe in PUBLISHED:
        assert "To beat" in opening
        assert "unverified" in opening


def drawn(dataset: str, folder: Path) -> SampleStore:
    """A store of drawn hands, one in a frame: right and, but for HO-3D, left ones."""
    joint_set, training, held_out = SPLITS[dataset]
    left = dataset == "dexycb"
    store = hand_store(
        folder / "s.zarr",
        24,
        attributes={"dataset": dataset, "joint_set": joint_set},
        has_hand=lambda row, slot: slot == (row % 2 if left else 0),
        splits={training: range(16), held_out: range(16, 24)},
    )
    write_mano(folder / "mano")
    return SampleStore(root=folder, mano=folder / "mano", store=store)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_trains(
    recipe: str,
    freihand: SampleStore,
    interhand: SampleStore,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """As it stands but for the size of network, batch and input, and its length."""
    import timm

    dataset = recipe.split("_", maxsplit=1)[0]
    store = interhand if recipe == "interhand" else freihand
    if dataset == "arctic":
        store = request.getfixturevalue("arctic")
    if dataset in SPLITS:
        store = drawn(dataset, tmp_path)
    second = [f"mix.{MIXED[recipe]}.store=y"] if recipe in MIXED else []
    settings: Any = compose(RunConfig, [f"experiment={recipe}", "store=x", *second])
    assert timm.is_model(settings.model.backbone)
    assert settings.model.pretrained
    backbone = "test_vit" if "vit" in settings.model.backbone else "test_resnet"
    words = [
        f"experiment={recipe}",
        f"store={store.store}",
        f"mano={store.mano}",
        f"run_dir={tmp_path / 'run'}",
        f"model.backbone={backbone}",
        "model.pretrained=false",
        "model.hidden=16",
        "pipeline.input_px=32",
        "pipeline.cache.size_px=40",
        "batch_size=8",
        "log_every=1",
        "precision=fp32",
        "device=cpu",
    ]
    if settings.model.readout is Readout.transformer:
        words += ["model.readout_width=64", "model.readout_layers=1"]
    if settings.stages:
        words += [f"stages.{name}.epochs=0.3" for name in settings.stages]
    else:
        words += ["steps=2"]
    if recipe == "mix":
        words += [f"mix.interhand.store={interhand.store}", f"mano={interhand.mano}"]
    if recipe == "ho3d_finetune":
        words += [f"mix.freihand.store={freihand.store}"]
    assert run(compose(RunConfig, words)) == 0
    assert any(
        f"validation/{settings.validation.metric}" in row for row in log_of(tmp_path / "run")
    )


def test_published_weights_offline_name_the_way_out(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("cannot reach the hub")

    monkeypatch.setattr("timm.create_model", offline)
    words = ["experiment=freihand_vits", f"store={freihand.store}", f"mano={freihand.mano}"]
    with pytest.raises(ValueError, match=r"local file with model\.weights=PATH"):
        run(compose(RunConfig, [*words, f"run_dir={tmp_path / 'run'}", "device=cpu"]))
