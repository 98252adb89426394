"""A new family needs its own files and one row, nothing else."""

import json
from pathlib import Path

import pytest
import torch

from model.families import FAMILIES, Family, config_class, upgraded
from model.plain import from_plain, to_plain
from model.pretrained import load_pretrained
from model.regressor.config import RegressorConfig, Scene
from pipeline.app.cli import UsageError, compose
from tests.conftest import SampleStore, scores_file
from tests.train.toy.config import ToyConfig
from tests.train.toy.losses import aperture
from tests.train.toy.net import ToyNet
from train.config import EvaluateConfig, OptimConfig, RunConfig
from train.evaluate.evaluate import main as evaluate
from train.losses.config import LossConfig
from train.losses.plan import Group, plan_losses
from train.run import main as run
from train.step.optim import build_optimizer

ROOT = Path(__file__).parents[2]
ROW = Family(
    config="tests.train.toy.config:ToyConfig",
    network="tests.train.toy.net:ToyNet",
    losses="tests.train.toy.losses:GROUPS",
    labels=("tests.train.toy.labels:Apertures",),
)
WORDS = (
    "model=toy", "pipeline.input_px=32", "pipeline.cache.size_px=40", "batch_size=8",
    "log_every=2", "pictures_every=100", "checkpoint_every=2", "optim.lr=1e-3",
    "optim.warmup_steps=0", "threads=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", ROW)


def words(data: SampleStore, folder: Path, *more: str) -> RunConfig:
    config = compose(RunConfig, [*WORDS, f"store={data.store}", f"run_dir={folder}", *more])
    assert isinstance(config, RunConfig)
    return config


def losses(folder: Path) -> dict[int, dict[str, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def test_a_family_of_four_files_trains_resumes_evaluates_and_exports(
    freihand: SampleStore, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(words(freihand, whole, "steps=4")) == 0
    assert run(words(freihand, parts, "steps=4", "optim.schedule=constant")) == 0
    assert run(words(freihand, parts, "steps=8", "optim.schedule=constant")) == 0  # goes on
    found = losses(whole)[4]
    assert found["seen/aperture"] > 0.9
    assert found["loss/aperture"] > 0
    assert set(losses(parts)) == {2, 4, 6, 8}
    assert losses(parts)[8]["loss"] < losses(parts)[2]["loss"]

    options = EvaluateConfig(run=str(whole), store=str(freihand.store), split="evaluation")
    assert evaluate(options) == 0
    scores = json.loads(scores_file(whole).read_text())
    assert scores["model"]["mpjpe_mm"] > 0
    assert scores["official"] is None  # FreiHAND's protocol wants meshes, and here are none

    network = load_pretrained(whole / "weights", mano=None)
    assert isinstance(network, ToyNet)
    assert json.loads((whole / "weights" / "config.json").read_text())["model"] == {
        "family": "toy",
        "side": 8,
    }


def test_nothing_of_the_product_knows_the_toy() -> None:
    own = {path.name for path in (ROOT / "tests" / "train" / "toy").glob("*.py")}
    assert own == {"__init__.py", "config.py", "net.py", "labels.py", "losses.py"}
    for package in ("pipeline", "preprocess", "model", "train", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert "toy" not in path.read_text().lower(), path


def test_the_familys_own_term_can_be_weighed_and_others_are_refused(
    freihand: SampleStore, tmp_path: Path
) -> None:
    off = words(freihand, tmp_path / "off", "steps=1", "loss.extra={aperture: 0}", "log_every=1")
    assert run(off) == 0
    assert "loss/aperture" not in losses(tmp_path / "off")[1]
    wrong = words(freihand, tmp_path / "wrong", "steps=1", "loss.extra={apertures: 1}")
    with pytest.raises(ValueError, match="'apertures', but the model family's own terms are: aper"):
        run(wrong)
    staged = words(
        freihand,
        tmp_path / "staged",
        "stages.a.steps=1",
        "stages.a.loss={aperture: 5}",
        "log_every=1",
    )
    assert run(staged) == 0
    row = losses(tmp_path / "staged")[1]
    plain = losses(tmp_path / "off")[1]
    assert row["loss"] == pytest.approx(plain["loss"] + 5 * row["loss/aperture"], rel=1e-5)


def test_a_family_does_not_take_anothers_view_or_keys(
    freihand: SampleStore, tmp_path: Path
) -> None:
    frames = words(freihand, tmp_path, "pipeline.view.kind=frame", "steps=1")
    with pytest.raises(ValueError, match=r"model=toy needs pipeline.view.kind=hand, got frame"):
        run(frames)
    with pytest.raises(UsageError, match=r"unknown option 'model.backbone'"):
        words(freihand, tmp_path, "model.backbone=resnet50")
    with pytest.raises(
        ValueError, match="model='toys' is no model family; there are regressor, to"
    ):
        config_class("toys")


def test_a_configuration_goes_to_plain_values_and_back() -> None:
    config = RunConfig(resume="x", model=ToyConfig(side=3))
    assert from_plain(RunConfig, to_plain(config)) == config


def test_configurations_from_before_the_families_are_read() -> None:
    old = {**to_plain(RunConfig(resume="x"))["model"], "family": "hand_object"}
    del old["scene"]
    assert upgraded(old)["scene"] == "hand_object"
    plain = {**to_plain(RunConfig(resume="x")), "model": old}
    expected = RegressorConfig(scene=Scene.hand_object)
    assert from_plain(RunConfig, plain).model == expected


def test_the_hooks_of_a_network_are_called(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(ToyNet, "after_step", lambda _: steps.append(1))
    monkeypatch.setattr(ToyNet, "no_weight_decay", lambda _: frozenset({"linear.weight"}))
    assert run(words(freihand, tmp_path, "steps=3")) == 0
    assert len(steps) == 3
    network = ToyNet(ToyConfig(), input_px=32, mano=None)
    groups = build_optimizer(network, OptimConfig(weight_decay=0.5)).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0}


def test_a_term_without_a_weight_and_a_row_of_another_name_are_defects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nameless = Group(names=("aperture",), compute=aperture)
    monkeypatch.setattr("tests.train.toy.losses.GROUPS", (nameless,))
    with pytest.raises(AssertionError, match=r"without a default weight in their Group: \['apert"):
        plan_losses(LossConfig(), torch.device("cpu"), family="toy")
    monkeypatch.setitem(FAMILIES, "toy2", ROW)
    with pytest.raises(ValueError, match=r"ToyConfig must have family: str = 'toy2'"):
        config_class("toy2")
