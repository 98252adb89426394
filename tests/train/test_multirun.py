"""A grid of runs: a folder for each, one table, and a second call goes on."""

import json
from pathlib import Path

import pytest
import torch

import train.multirun
from pipeline.app.cli import UsageError, front_door, grid
from tests.conftest import SampleStore
from train.__main__ import COMMANDS
from train.config import RunConfig
from train.multirun import folder_name

SMALL = (
    "model.head=joints", "model.backbone=test_resnet", "model.pretrained=false", "model.hidden=16",
    "pipeline.input_px=32", "pipeline.cache.size_px=40", "batch_size=8", "threads=1", "log_every=1",
    "pictures_every=100", "steps=2", "device=cpu",
)  # fmt: skip


def test_every_combination_is_composed_once_and_in_order() -> None:
    words = ["store=/a,b c", "optim.lr=1e-4,3e-4", "model.hidden=range(1,4)", "steps=7"]
    with pytest.raises(UsageError, match="needs a key with several values"):
        grid(RunConfig, ["store=x"])
    points = grid(RunConfig, ["store='/a,b c'", *words[1:]])
    assert len(points) == 6
    assert [p.chosen["optim.lr"] for p in points] == ["0.0001"] * 3 + ["0.0003"] * 3
    assert [p.config.model.hidden for p in points] == [1, 2, 3] * 2
    assert {p.config.steps for p in points} == {7}
    with pytest.raises(UsageError, match=r"did you mean 'optim\.lr'"):
        grid(RunConfig, ["store=x", "optim.lrr=1,2"])


def test_folders_are_named_by_number_and_values() -> None:
    assert folder_name(3, {"optim.lr": "1e-4", "store": "/a/b"}) == "03_lr=1e-4_store=-a-b"
    assert len(folder_name(0, {"store": "x" * 500})) <= 120


def test_a_grid_of_runs(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, f"store={freihand.store}", f"run_dir={tmp_path / 'grid'}"]
    asked = ["run", "--multirun", *words, "optim.lr=1e-3,1e-4", "accumulate=1,2"]
    assert front_door("python -m train", COMMANDS, asked) == 0
    rows = json.loads((tmp_path / "grid" / "multirun.json").read_text())
    assert [(row["optim.lr"], row["accumulate"]) for row in rows] == [
        ("0.001", "1"), ("0.001", "2"), ("0.0001", "1"), ("0.0001", "2"),
    ]  # fmt: skip
    for row in rows:
        assert row["step"] == 2
        assert (Path(row["folder"]) / "weights" / "config.json").is_file()
    out = capsys.readouterr().out
    assert "multirun 4/4" in out
    assert "multirun.json" in out
    assert front_door("python -m train", COMMANDS, asked) == 0  # nothing left to do
    again = json.loads((tmp_path / "grid" / "multirun.json").read_text())
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]


def test_one_that_fails_does_not_stop_the_others(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, f"store={freihand.store}", f"run_dir={tmp_path / 'grid'}"]
    asked = ["run", "--multirun", *words, "model.backbone=no_such_net,test_resnet"]
    assert front_door("python -m train", COMMANDS, asked) == 1
    rows = json.loads((tmp_path / "grid" / "multirun.json").read_text())
    assert "is not a timm model" in rows[0]["failed"]
    assert rows[1]["step"] == 2
    assert f"{rows[0]['folder']}: {rows[0]['failed']}" in capsys.readouterr().out


def test_other_commands_have_no_grid(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", "--multirun", "run=a,b", "store=x"]
    assert front_door("python -m train", COMMANDS, asked) == 2
    assert "--multirun is for training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        (["run_dir=a,b"], {}, "--multirun gives every run a folder of its own: give one run_dir"),
        (["steps=1,2"], {"RANK": "0"}, "--multirun is for one process"),
    ],
)
def test_what_a_grid_cannot_be_is_one_sentence(
    words: list[str],
    environment: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert front_door("python -m train", COMMANDS, ["run", "--multirun", "store=x", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_run_without_memory_is_a_row_of_the_table(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(config: RunConfig) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(train.multirun, "run", run_out)
    points = grid(RunConfig, [*SMALL, "store=x", f"run_dir={tmp_path}", "batch_size=8,16"])
    assert train.multirun.main(points) == 1
    rows = json.loads((tmp_path / "multirun.json").read_text())
    assert [row["failed"] for row in rows] == ["CUDA out of memory."] * 2
