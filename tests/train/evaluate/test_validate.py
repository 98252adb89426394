"""Validation while a run goes on."""

import json
import resource
from pathlib import Path

import pytest
import torch

from pipeline.app.cli import compose
from pipeline.loader import Loader
from tests.conftest import SampleStore, scores_file
from tests.train.state.test_checkpoint import config
from tests.train.test_run import log_of
from train.config import CheckpointChoice, EvaluateConfig, RunConfig
from train.evaluate.evaluate import evaluation_pipeline
from train.evaluate.evaluate import main as evaluate
from train.evaluate.validate import shared_with_training, validation_pipeline
from train.run import main as run
from train.state.checkpoint import read_checkpoint

VALIDATED = ["validation.split=evaluation", "validation.every=3", "validation.batch_size=3"]


def test_scores_are_those_of_evaluate(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a cadence and at the end, of the averaged weights; the best checkpoint is kept."""
    words = [*VALIDATED, "steps=8", "optim.lr=3e-3", "checkpoint_every=100"]
    assert run(config(freihand, tmp_path, *words)) == 0
    rows = [row for row in log_of(tmp_path) if "validation/pa_mpjpe_mm" in row]
    assert [row["step"] for row in rows] == [3, 6, 8]
    by_step = {row["step"]: row["validation/pa_mpjpe_mm"] for row in rows}
    best = min(by_step, key=lambda step: by_step[step])
    assert read_checkpoint(tmp_path, CheckpointChoice.best, say=pytest.fail)["step"] == best
    assert (tmp_path / "weights" / "model.safetensors").exists()
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["step"] == best

    scored = EvaluateConfig(run=str(tmp_path), store=str(freihand.store), mano=str(freihand.mano))
    assert evaluate(scored) == 0
    scores = json.loads(scores_file(tmp_path).read_text())
    assert scores["synthetic"] is True
    words_out = " ".join(capsys.readouterr().out.split())
    assert "is synthetic, rendered by make-sample: these scores test the software" in words_out
    for name in ("pa_mpjpe_mm", "mpjpe_mm", "mpvpe_mm", "auc_j"):
        assert scores["model"][name] == pytest.approx(rows[-1][f"validation/{name}"], rel=1e-6)


@pytest.mark.parametrize("head", ["mano", "joints"])
def test_the_untrained_network_is_scored_beside_the_mean_pose(
    freihand: SampleStore, tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mean of joints shrinks where hands are seen from all sides; a decoded hand does not."""
    words = ["validation.split=evaluation", "steps=1", "optim.lr=1e-9", f"model.head={head}"]
    assert run(config(freihand, tmp_path, *words)) == 0
    (row,) = [row for row in log_of(tmp_path) if "validation/pa_mpjpe_mm" in row]
    start = row["validation/pa_mpjpe_mm_untrained"]
    assert row["validation/pa_mpjpe_mm"] == pytest.approx(start, rel=0.02)
    mean = row["validation/pa_mpjpe_mm_mean_pose"]
    same = mean == pytest.approx(start, rel=1e-4)
    assert same == (head == "joints")
    assert f"to beat: validation pa_mpjpe_mm {mean:.2f} (mean pose), " in capsys.readouterr().out

    scored = EvaluateConfig(run=str(tmp_path), store=str(freihand.store), mano=str(freihand.mano))
    assert evaluate(scored) == 0
    scores = json.loads(scores_file(tmp_path).read_text())
    assert scores["untrained"]["pa_mpjpe_mm"] == pytest.approx(start, rel=1e-6)
    assert scores["mean_pose"]["pa_mpjpe_mm"] == pytest.approx(mean, rel=1e-6)
    assert "untrained" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_scored(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(config(freihand, tmp_path / "run", "steps=1", "model.head=joints")) == 0
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "scores"
    monkeypatch.setattr("train.evaluate.evaluate.add_scores", pytest.fail)
    with pytest.raises(NotADirectoryError, match=str(out)):
        evaluate(EvaluateConfig(run=str(tmp_path / "run"), store=str(freihand.store), out=str(out)))


def test_a_full_disk_costs_validation_its_files_only(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are taken on; without its last checkpoint and weights the run ends with 1."""
    words = ["validation.split=evaluation", "validation.every=2", "steps=6", "model.head=joints"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert run(config(freihand, tmp_path, *words)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    scored = [row["step"] for row in log_of(tmp_path) if "validation/pa_mpjpe_mm" in row]
    assert scored == [2, 4, 6]
    said = capsys.readouterr().out
    assert said.count("File too large") >= 3
    assert "the earlier ones are untouched; tried again in 2 steps" in said
    assert not (tmp_path / "weights" / "model.safetensors").exists()
    assert run(config(freihand, tmp_path, *words)) == 0


def test_validation_changes_no_training(freihand: SampleStore, tmp_path: Path) -> None:
    assert run(config(freihand, tmp_path / "with", *VALIDATED, "steps=7")) == 0
    assert run(config(freihand, tmp_path / "without", "steps=7")) == 0
    runs = [read_checkpoint(tmp_path / name, say=pytest.fail) for name in ("with", "without")]
    for part in ("model", "ema"):
        assert all(torch.equal(runs[0][part][n], runs[1][part][n]) for n in runs[0][part])


def test_shared_images_and_people_are_said(
    freihand: SampleStore,
    interhand: SampleStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = config(freihand, tmp_path, "validation.split=train", "validation.subset=0.5")
    device = torch.device("cpu")
    training = Loader(settings.pipeline, device=device)
    held_out = Loader(validation_pipeline(settings), device=device, training=False)
    (said,) = shared_with_training(training, held_out)
    assert said.startswith("32 of 32 validation images are in the training set")
    apart = config(freihand, tmp_path, "validation.split=evaluation")
    held_out = Loader(validation_pipeline(apart), device=device, training=False)
    assert shared_with_training(training, held_out) == []

    both = config(interhand, tmp_path, "split=train", f"validation.store={interhand.store}")
    both.validation.split = "val"
    loaders = (
        Loader(both.pipeline, device=device),
        Loader(validation_pipeline(both), device=device, training=False),
    )
    subjects = [
        {str(p.store.label("subject_idx")[r]) for p in loader.parts for r in p.view.row.tolist()}
        for loader in loaders
    ]
    found = shared_with_training(*loaders)
    assert bool(found) == bool((subjects[0] & subjects[1]) - {"-1"})
    if found:
        assert "validation subjects are in the training set as well" in found[0]

    assert run(config(freihand, tmp_path / "run", "validation.split=train", "steps=1")) == 0
    assert "warning: 64 of 64 validation images are in the training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validation.every=0"], "every must be at least 1, got 0"),
        (["validation.metric=auc_j"], "must be one of mpjpe_mm, pa_mpjpe_mm.*got 'auc_j'"),
    ],
)
def test_bad_values_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(RunConfig, ["store=x", *words])


def test_a_metric_without_meshes_is_one_sentence(freihand: SampleStore, tmp_path: Path) -> None:
    words = [*VALIDATED, "validation.metric=mpvpe_mm", "model.head=joints", "steps=3"]
    with pytest.raises(ValueError, match=r"mpvpe_mm needs meshes.*use mpjpe_mm or"):
        run(config(freihand, tmp_path, *words))


def test_the_stores_of_a_mixture_are_not_scored(freihand: SampleStore, tmp_path: Path) -> None:
    words = [f"mix.other.store={freihand.store}", "validation.split=evaluation"]
    trained = config(freihand, tmp_path, *words)
    assert trained.pipeline.mix
    scored = EvaluateConfig(run=str(tmp_path), store=str(freihand.store))
    assert evaluation_pipeline(trained.pipeline, scored).mix == {}
    assert validation_pipeline(trained).mix == {}
