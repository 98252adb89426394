"""The whole way: store -> cache -> gather -> network -> losses -> checkpoint -> scores."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from rich.console import Console

from model.families import build_network
from model.mano.files import load_mano
from pipeline.app.cli import compose
from pipeline.app.lock import FolderInUseError, locked
from pipeline.loader import Loader
from preprocess.builder.build import build
from preprocess.config import BuildConfig
from tests.conftest import SampleStore, scores_file
from train.config import EvaluateConfig, RunConfig
from train.device.distributed import ALONE
from train.evaluate.evaluate import main as evaluate
from train.run import LOCK
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.step.fault import DivergedError, raise_fault
from train.step.stages import resolve_stages
from train.step.step import build_state, train_step

SMALL = [
    "model.backbone=resnet10t",
    "model.pretrained=false",
    "model.hidden=32",
    "device=cpu",
    "precision=fp32",
    "pipeline.input_px=32",
    "pipeline.cache.size_px=40",
    "batch_size=8",
    "optim.warmup_steps=2",
    "log_every=2",
    "pictures_every=100",
    "checkpoint_every=100",
]


OTHER_STORES = {
    "mix": ["mix.interhand.store=y"],
    "ho3d_finetune": ["mix.freihand.store=y"],
}
"""Recipes of mixtures, and what they need beside the first store."""


def config(data: SampleStore, run_dir: Path, *words: str) -> RunConfig:
    base = [f"store={data.store}", f"mano={data.mano}", f"run_dir={run_dir}"]
    built = compose(RunConfig, [*base, *SMALL, *words])
    assert isinstance(built, RunConfig)
    return built


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in log_of(run_dir) if "loss" in row}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    payload = read_checkpoint(run_dir, say=print)
    return {f"{part}.{k}": v for part in ("model", "ema") for k, v in payload[part].items()}


@pytest.mark.parametrize("head", ["mano", "joints"])
def test_a_run_trains_draws_saves_and_is_scored(
    freihand: SampleStore, tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    # One batch holds the whole set, so that the loss of one step compares with another's.
    words = ["steps=6", "batch_size=64", f"model.head={head}"]
    assert run(config(freihand, run_dir, *words)) == 0

    seen = losses(run_dir)
    assert sorted(seen) == [2, 4, 6]
    assert seen[6] < seen[2]
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["config"]["model"]["head"] == head
    assert len(manifest["store_sha256"]) == 64
    picture = cv2.imread(str(run_dir / "pictures" / "train-0000006.png"))
    assert picture is not None
    assert picture.std() > 10
    assert list((run_dir / "tensorboard").iterdir())

    scored = EvaluateConfig(
        run=str(run_dir), store=str(freihand.store), mano=str(freihand.mano), batch_size=3
    )
    assert evaluate(scored) == 0
    scores = json.loads(scores_file(run_dir).read_text())
    assert scores["model"]["num_hands"] == scores["mean_pose"]["num_hands"] == 8
    assert (scores["model"]["pa_mpvpe_mm"] is None) == (head == "joints")
    assert 5 < scores["mean_pose"]["pa_mpjpe_mm"] < 40
    assert "PA-MPJPE mm" in capsys.readouterr().out


def test_mano_is_learned_from_joints_alone(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From MANO's mean pose turned to the mean joints, or from the weights of another run."""
    store = tmp_path / "joints.zarr"
    built = BuildConfig(dataset="freihand", root=str(freihand.root), out=str(store), workers=1)
    build(built, console=Console(quiet=True))
    data = replace(freihand, store=store)
    words = ["steps=6", "batch_size=64", "validation.split=evaluation", "optim.lr=2e-3"]
    assert run(config(data, tmp_path / "run", *words)) == 0
    assert "no MANO labels: learned from joints alone" in capsys.readouterr().out
    rows = [row for row in log_of(tmp_path / "run") if "loss" in row]
    assert rows[-1]["loss/joints_rel"] < rows[0]["loss/joints_rel"]
    assert rows[-1]["seen/theta"] == rows[-1]["seen/vertices"] == 0
    (held_out,) = [row for row in log_of(tmp_path / "run") if "validation/mpjpe_mm" in row]
    assert held_out["validation/pa_mpjpe_mm_untrained"] < 20  # MANO's mean pose

    scored = EvaluateConfig(
        run=str(tmp_path / "run"), store=str(store), mano=str(freihand.mano), batch_size=3
    )
    assert evaluate(scored) == 0
    scores = json.loads(scores_file(tmp_path / "run").read_text())
    assert scores["model"]["mpvpe_mm"] is None
    scored = replace(scored, store=str(freihand.store), out=str(tmp_path / "meshes"))
    assert evaluate(scored) == 0  # of a store with meshes: the mean pose has none
    scores = json.loads((tmp_path / "meshes" / "scores.json").read_text())
    assert scores["mean_pose"]["mpvpe_mm"] is None
    assert scores["untrained"]["mpvpe_mm"] is not None
    assert re.search(r"MPVPE mm +│ +[\d.]+ │ +- │ +[\d.]+ │", capsys.readouterr().out)
    assert run(config(data, tmp_path / "on", "steps=1", f"init={tmp_path / 'run'}")) == 0
    with_mano = [f"init={tmp_path / 'run'}", "steps=1"]
    assert run(config(freihand, tmp_path / "labels", *with_mano)) == 0


def test_what_cannot_be_drawn_costs_a_warning(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    for name in ("pictures", "tensorboard"):  # a file where a folder should be made
        run_dir.mkdir(exist_ok=True)
        (run_dir / name).touch()
    (run_dir / "manifest.json").write_text('{"run_id": "killed before its first checkpoint"}')
    words = ["steps=4", "pictures_every=2", "model.head=joints"]
    assert run(config(freihand, run_dir, *words)) == 0
    printed = capsys.readouterr().out
    assert printed.count("warning: pictures failed: File exists") == 1
    assert printed.count("warning: TensorBoard failed") == 1
    assert sorted(losses(run_dir)) == [2, 4]

    out = tmp_path / "scored"
    (out / "predictions.png").mkdir(parents=True)
    scored = EvaluateConfig(run=str(run_dir), store=str(freihand.store), out=str(out))
    assert evaluate(scored) == 0
    assert "warning: the picture failed" in capsys.readouterr().out
    assert (out / "scores.json").is_file()


def test_a_resume_without_steps_left_says_what_to_pass(
    freihand: SampleStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = tmp_path / "run"
    words = ["steps=4", "model.head=joints"]
    assert run(config(freihand, run_dir, *words)) == 0
    rows = log_of(run_dir)
    opened: list[None] = []
    usual = Loader.__init__

    def opening(*arguments: Any, **options: Any) -> None:
        opened.append(None)
        usual(*arguments, **options)

    monkeypatch.setattr(Loader, "__init__", opening)
    for asked, end in ((["steps=4"], 4), (["steps=2"], 2), ([], 4)):
        resumed = compose(RunConfig, [f"resume={run_dir}", *asked, "device=cpu"])
        capsys.readouterr()
        assert run(resumed) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{run_dir} is at step 4 of {end}: nothing to do; python -m train")
    assert (log_of(run_dir), opened) == (rows, [])

    for file in (run_dir / "weights").iterdir():  # killed before they were written
        file.unlink()
    assert run(config(freihand, run_dir, *words)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (run_dir / "weights" / "config.json").is_file()


def test_two_runs_do_not_share_a_folder(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    words = ["steps=2", "model.head=joints"]
    with locked(run_dir / LOCK, "", instead=""):
        (run_dir / "notes.txt").touch()
        for config_ in (
            config(freihand, run_dir, *words),
            compose(RunConfig, [f"resume={run_dir}", "device=cpu"]),
        ):
            with pytest.raises(FolderInUseError, match=rf"another run trains in {run_dir} \(proce"):
                run(config_)
    assert run(config(freihand, run_dir, *words)) == 0
    assert not (run_dir / LOCK).exists()
    before = sorted((run_dir / "checkpoints").iterdir())

    (run_dir / LOCK).write_text('{"host": "node7", "pid": 3, "since": "yesterday", "ticks": 1}')
    assert run(config(freihand, run_dir, *words)) == 0
    assert f"{run_dir}: taken over from process 3 on node7, since" in capsys.readouterr().out
    assert sorted((run_dir / "checkpoints").iterdir()) == before


@pytest.mark.parametrize(
    "name", ["log.jsonl", "weights/model.safetensors", "checkpoints/x.pt.tmp", "manifest.json"]
)
def test_a_folder_of_others_is_no_folder_of_a_run(
    freihand: SampleStore, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"mine": 1}\n')
    with pytest.raises(
        FileExistsError, match=f"holds {name.split('/', maxsplit=1)[0]}, which would be"
    ):
        run(config(freihand, tmp_path, "steps=2"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_text() == '{"mine": 1}\n'


def test_weights_whose_checkpoints_are_gone_are_not_replaced(
    freihand: SampleStore, tmp_path: Path
) -> None:
    words = ["steps=2", "model.head=joints"]
    assert run(config(freihand, tmp_path, *words)) == 0
    shutil.rmtree(tmp_path / "checkpoints")
    before = (tmp_path / "weights" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds the weights of a run whose checkpoints"):
        run(config(freihand, tmp_path, *words))
    assert (tmp_path / "weights" / "model.safetensors").read_bytes() == before


def test_a_mixture_of_an_earlier_release_is_refused_before_anything_is_loaded(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(freihand, tmp_path, f"mix.other.store={freihand.store}")
    payload = {"step": 4, "loader": {"version": 2, "weights": [1.0, 1.0]}}
    monkeypatch.setattr("train.run.continue_from", lambda given, _: (given, payload))
    monkeypatch.setattr("train.run.Loader", None)
    with pytest.raises(ValueError, match="a mixture in order 1, this code deals order 2"):
        run(settings)


def test_an_interhand_run_mirrors_left_hands(interhand: SampleStore, tmp_path: Path) -> None:
    settings = config(interhand, tmp_path / "run", "steps=2", "batch_size=4")
    assert run(settings) == 0
    loader = Loader(settings.pipeline, device=torch.device("cpu"), training=False)
    batches = list(loader)
    assert any(bool(batch.mirrored.any()) for batch in batches)
    assert all(torch.equal(batch.mirrored, ~batch.is_right[:, 0]) for batch in batches)


def test_a_run_from_published_weights_is_scored_and_continued_offline(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    create, asked = timm.create_model, []

    def published(name: str, *, pretrained: bool, **options: Any) -> Any:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", published)
    words = ["model.pretrained=true", "steps=2"]
    assert run(config(freihand, tmp_path / "run", *words)) == 0
    assert asked.pop()
    asked.clear()
    assert run(config(freihand, tmp_path / "run", words[0], "steps=3")) == 0
    scored = EvaluateConfig(
        run=str(tmp_path / "run"), store=str(freihand.store), mano=str(freihand.mano)
    )
    assert evaluate(scored) == 0
    assert not any(asked), "a checkpoint brings its own weights"


def test_a_frame_view_is_refused(freihand: SampleStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs pipeline\.view\.kind=hand, got frame"):
        run(config(freihand, tmp_path, "pipeline.view.kind=frame"))


def test_interhand_without_its_regressor_is_refused(interhand: SampleStore, tmp_path: Path) -> None:
    bare = tmp_path / "mano"
    bare.mkdir()
    for name in ("MANO_RIGHT.npz", "MANO_LEFT.npz"):
        (bare / name).write_bytes((interhand.mano / name).read_bytes())
    with pytest.raises(ValueError, match=r"J_regressor_mano_ih26m.npy"):
        run(config(interhand, tmp_path / "run", f"mano={bare}"))


def test_two_runs_are_equal_to_the_bit(freihand: SampleStore, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(config(freihand, tmp_path / name, "steps=4"))
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("kind", "word"),
    [(signal.SIGTERM, "loss.uncertainty=false"), (signal.SIGINT, "loss.uncertainty=true")],
)
def test_a_run_resumed_after_a_signal_equals_an_uninterrupted_one(
    freihand: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: signal.Signals,
    word: str,
) -> None:
    run(config(freihand, tmp_path / "whole", "steps=12", word))

    import train.loop

    step, taken = train_step, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 9:  # mid-epoch: 8 steps of 8 samples are one epoch of 64
            os.kill(os.getpid(), kind)
        return step(*arguments)

    monkeypatch.setattr(train.loop, "train_step", interrupted)
    assert run(config(freihand, tmp_path / "parts", "steps=12", word)) == 130
    assert read_checkpoint(tmp_path / "parts", say=print)["step"] == 9
    monkeypatch.setattr(train.loop, "train_step", step)
    assert run(config(freihand, tmp_path / "parts", "steps=12", word)) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    if word == "loss.uncertainty=true":
        one, other = (
            read_checkpoint(tmp_path / name, say=print)["log_variance"]
            for name in ("whole", "parts")
        )
        assert torch.equal(one, other)
        learned = {k: v for k, v in log_of(tmp_path / "whole")[-1].items() if "log_var" in k}
        assert "log_variance/joints_rel" in learned
        assert all(value != 0 for value in learned.values())


def test_another_configuration_in_the_same_folder_is_refused(
    freihand: SampleStore, tmp_path: Path
) -> None:
    run(config(freihand, tmp_path, "steps=1"))
    with pytest.raises(ValueError, match=r"another configuration \(optim.lr: 0.0003 -> 0.1\)"):
        run(config(freihand, tmp_path, "steps=1", "optim.lr=0.1"))


def test_a_nan_label_is_named_and_changes_no_weight(freihand: SampleStore, tmp_path: Path) -> None:
    settings = config(freihand, tmp_path)
    loader = Loader(settings.pipeline, device=torch.device("cpu"))
    model = build_network(settings.model, input_px=32, mano=load_mano(freihand.mano))
    state = build_state(model, settings, 8)
    (stage,) = resolve_stages(settings, loader.steps_per_epoch)
    batch = next(iter(loader))
    train_step(state, batch, settings, stage)
    before = {name: p.clone() for name, p in state.model.named_parameters()}

    poisoned = batch.joints_3d.clone()
    poisoned[3, 0, 5] = float("nan")
    train_step(state, replace(batch, joints_3d=poisoned), settings, stage)

    assert all(torch.equal(p, before[name]) for name, p in state.model.named_parameters())
    expected = (
        rf"in 1 steps, first at step 1: samples \[{int(batch.sample_id[3])}\], "
        r"in joints_abs, joints_rel, joints_2d \(first: "
    )
    with pytest.raises(DivergedError, match=expected):
        raise_fault(state.fault, ALONE, loader)
    train_step(state, batch, settings, stage)  # the next good step trains on
    after = dict(state.model.named_parameters())
    assert not torch.equal(after["mlp.0.weight"], before["mlp.0.weight"])


def test_a_mano_head_without_mano_is_one_sentence(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)
    words = [f"store={freihand.store}", f"run_dir={tmp_path}", *SMALL]
    with pytest.raises(ValueError, match=r"pass mano=FOLDER or set HANDLOOM_MANO"):
        run(compose(RunConfig, words))


def test_pretrained_weights_are_never_silently_missing(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    wanted = config(freihand, tmp_path, "model.pretrained=true")
    with pytest.raises(ValueError, match=r"model.weights=PATH .* model.pretrained=false"):
        run(wanted)


def test_every_experiment_composes() -> None:
    names = sorted(path.stem for path in RunConfig.EXPERIMENTS.glob("*.yaml"))
    assert {"overfit", "quickstart"} <= set(names)
    for name in names:
        words = [f"experiment={name}", "store=x"]
        words += OTHER_STORES.get(name, [])
        assert isinstance(compose(RunConfig, words), RunConfig)
