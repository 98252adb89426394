"""Two hands and an object: single frames, then windows from their weights, then the protocol."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.loader import Loader
from pipeline.store.schema import SYNTHETIC_FILE
from tests.conftest import SampleStore, scores_file
from tests.train.test_run import config, log_of, weights
from train.config import DEFAULT_STEPS, EvaluateConfig
from train.evaluate.evaluate import main as evaluate
from train.losses.inputs import MOTION_TERMS, OBJECT_TERMS
from train.run import main as run

SCENE = [
    "model.scene=hand_object",
    "pipeline.view.kind=hand_object",
    "pipeline.view.require_joints=true",
    "pipeline.split=p1_train",
    "steps=4",
]
WINDOWS = [
    "pipeline.window.length=3",
    "batch_size=2",
    "model.temporal_layers=1",
    "model.temporal_width=64",
    "loss.velocity=1.0",
    "loss.acceleration=1.0",
]


@pytest.fixture(scope="module")
def frames(arctic: SampleStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("frames") / "run"
    assert run(config(arctic, run_dir, *SCENE)) == 0
    return run_dir


def scores_of(run_dir: Path, arctic: SampleStore, export: str | None = None) -> dict[str, float]:
    asked = EvaluateConfig(
        run=str(run_dir),
        store=str(arctic.store),
        split="p1_val",
        mano=str(arctic.mano),
        export=export,
    )
    assert evaluate(asked) == 0
    record = json.loads(scores_file(run_dir, "p1_val").read_text())
    assert record["crop"] == "box around the labelled hands and the object"
    assert record["official"]["num_samples"] == record["official_mean"]["num_samples"] == 24
    assert record["model"]["num_hands"] > 24
    scores: dict[str, float] = record["official"]["official"]
    mean = record["official_mean"]["official"]
    assert scores.keys() == mean.keys()
    assert scores["aae"] != mean["aae"]
    return scores


def test_a_run_learns_both_hands_and_the_object(frames: Path, arctic: SampleStore) -> None:
    last = [row for row in log_of(frames) if "loss" in row][-1]
    for term in OBJECT_TERMS:
        assert 0 < last[f"seen/{term}"] <= 1
        assert np.isfinite(last[f"loss/{term}"])
    assert not any(f"loss/{term}" in last for term in MOTION_TERMS)
    assert last["seen/vertices"] > 0
    picture = cv2.imread(str(frames / "pictures" / "train-0000004.png"))
    assert picture is not None
    for colour in ((255, 255, 255), (0, 190, 255)):  # BGR: the object, true and predicted
        assert (picture == colour).all(-1).any()
    scores = scores_of(frames, arctic)
    for name in ("mpjpe/ra/h", "aae", "mrrpe/r/o", "acc/h", "acc/o"):
        assert np.isfinite(scores[name]), name


def test_windows_begin_where_single_frames_stand(
    frames: Path, arctic: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    words = [*SCENE, *WINDOWS, f"init={frames}", "pipeline.augment.rotation_deg=0"]
    stages = ["stages.one.steps=2", "stages.one.freeze=[backbone]", "stages.one.lr=0.001"]
    assert run(config(arctic, run_dir, *words, *stages, f"steps={DEFAULT_STEPS}")) == 0
    assert f"tensors from {frames}; new: temporal." in capsys.readouterr().out
    # The averaged weights of the first run are those of the file.
    begun, ended = weights(frames), weights(run_dir)
    for name, value in begun.items():
        if name.startswith("ema.backbone") and "num_batches" not in name:
            assert torch.equal(value, ended[name.replace("ema.", "model.")]), name
    rows = [row for row in log_of(run_dir) if "loss" in row]
    assert all(np.isfinite(rows[-1][f"loss/{term}"]) for term in MOTION_TERMS)
    scores = scores_of(run_dir, arctic, export=str(tmp_path / "pred"))
    assert np.isfinite(scores["acc/h"])
    assert len(list((tmp_path / "pred").glob("predictions/*.npz"))) == 8
    assert (tmp_path / "pred" / SYNTHETIC_FILE).is_file()  # protocol=arctic says so as well
    # A window from every frame, in batches of one: those of the last frames bring nothing new.
    asked = EvaluateConfig(
        run=str(run_dir),
        store=str(arctic.store),
        split="p1_val",
        mano=str(arctic.mano),
        batch_size=3,
        window_stride=1,
        out=str(tmp_path / "dense"),
    )
    assert evaluate(asked) == 0
    dense = json.loads((tmp_path / "dense" / "scores.json").read_text())
    assert dense["official"]["num_samples"] == 24


def test_the_camera_on_the_head_shows_its_whole_frame(arctic: SampleStore, tmp_path: Path) -> None:
    words = [*SCENE, "pipeline.view.kind=frame", "pipeline.split=p2_train", "batch_size=2"]
    assert run(config(arctic, tmp_path / "run", *words, "steps=2")) == 0
    asked = EvaluateConfig(
        run=str(tmp_path / "run"), store=str(arctic.store), split="p2_val", mano=str(arctic.mano)
    )
    assert evaluate(asked) == 0
    record = json.loads(scores_file(tmp_path / "run", "p2_val").read_text())
    assert record["crop"] == record["official"]["crop"] == "none: the whole frame"
    assert record["official"]["num_samples"] == 3
    assert np.isfinite(record["official"]["official"]["mpjpe/ra/h"])


def test_a_run_of_windows_continues_bit_by_bit(arctic: SampleStore, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = [*SCENE, *WINDOWS, "optim.schedule=constant"]
    assert run(config(arctic, whole, *words)) == 0
    assert run(config(arctic, cut, *words, "steps=2")) == 0
    assert run(config(arctic, cut, *words)) == 0
    ours, theirs = weights(whole), weights(cut)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_what_does_not_fit_is_refused(
    frames: Path,
    freihand: SampleStore,
    arctic: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        ValueError, match=r"scene=hand_object needs .*hand_object or frame, got hand"
    ):
        run(config(freihand, tmp_path / "a", "model.scene=hand_object"))
    with pytest.raises(ValueError, match=r"pipeline.window.length must be at least 2, got 1"):
        run(config(arctic, tmp_path / "b", *SCENE, "model.temporal_layers=2"))
    with pytest.raises(ValueError, match=r"loss.acceleration needs windows of at least 3 frames"):
        run(config(arctic, tmp_path / "d", *SCENE, "loss.acceleration=1"))
    with pytest.raises(ValueError, match=r"subset=0.5 leaves out frames"):
        run(config(arctic, tmp_path / "e", *SCENE, *WINDOWS, "subset=0.5"))
    other = ["model.backbone=resnet18", f"init={frames}"]
    with monkeypatch.context() as patch:  # before minutes of filling
        patch.setattr(Loader, "__init__", None)
        with pytest.raises(ValueError, match=r"init=.* lacks \d+ tensors of the backbone"):
            run(config(arctic, tmp_path / "f", *SCENE, *other))
        with pytest.raises(FileNotFoundError, match=r"init='.*' holds no weights"):
            run(config(arctic, tmp_path / "c", *SCENE, f"init={tmp_path}"))
    asked = EvaluateConfig(
        run=str(frames),
        store=str(arctic.store),
        split="p1_train",
        mano=str(arctic.mano),
        export=str(tmp_path / "x"),
    )
    with pytest.raises(ValueError, match="no official protocol for split=p1_train"):
        evaluate(asked)
