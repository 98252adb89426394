"""What goes wrong around a run: it ends with one clear line, or goes on; never a wrong resume."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train.loop
from pipeline import memory
from pipeline.app.cli import front_door
from pipeline.store.reader import Store
from pipeline.store.shard import shard_path
from tests.conftest import SampleStore
from tests.train.state.test_checkpoint import TINY, config
from tests.train.test_run import losses, weights
from train.__main__ import COMMANDS
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.step.step import train_step

STREAM = "pipeline.cache.codec=stream"


@pytest.fixture
def own_store(freihand: SampleStore, tmp_path: Path) -> SampleStore:
    """A store that a test may destroy."""
    shutil.copytree(freihand.store, tmp_path / "own.zarr")
    return SampleStore(root=freihand.root, mano=freihand.mano, store=tmp_path / "own.zarr")


def at_step(step: int, fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``fault`` happen before a step."""

    def take(state: Any, *rest: Any) -> Any:
        if state.step == step:
            fault()
        return train_step(state, *rest)

    monkeypatch.setattr(train.loop, "train_step", take)


def said_by(data: SampleStore, run_dir: Path, *words: str) -> list[str]:
    return [
        "run", f"store={data.store}", f"mano={data.mano}", f"run_dir={run_dir}", *TINY, *words
    ]  # fmt: skip


def test_a_store_that_vanishes_is_named_and_the_run_can_go_on(
    own_store: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, away = tmp_path / "run", tmp_path / "away.zarr"
    assert run(config(own_store, run_dir, "steps=4")) == 0
    own_store.store.rename(away)
    assert front_door("python -m train", COMMANDS, said_by(own_store, run_dir, "steps=6")) == 2
    assert f"no store at {own_store.store}" in capsys.readouterr().err
    moved = SampleStore(root=own_store.root, mano=own_store.mano, store=away)
    assert run(config(moved, run_dir, "steps=6")) == 0
    assert read_checkpoint(run_dir, say=pytest.fail)["step"] == 6


def test_a_resident_run_outlives_its_store(
    own_store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(3, lambda: shutil.rmtree(own_store.store), monkeypatch)
    assert run(config(own_store, tmp_path / "run", "steps=6")) == 0


def test_another_store_in_its_place_is_refused(
    own_store: SampleStore, interhand: SampleStore, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert run(config(own_store, run_dir, "steps=2", "model.head=joints")) == 0
    shutil.rmtree(own_store.store)
    shutil.copytree(interhand.store, own_store.store)
    with pytest.raises(ValueError, match=r"trained on other data \(store content .* -> "):
        run(config(own_store, run_dir, "steps=4", "model.head=joints", "split=train"))


@pytest.mark.parametrize("kind", ["bytes", "disk"])
def test_a_stream_whose_reader_fails_is_named_and_resumes(
    own_store: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """Changed bytes, or a disk that gives an error, in the middle of a run."""
    words = [STREAM, "steps=24", "checkpoint_every=2", "threads=1"]
    assert run(config(own_store, tmp_path / "whole", *words)) == 0
    path = shard_path(own_store.store, 0)
    before = path.read_bytes()
    healthy = Store.jpeg

    def broken(self: Store, row: int) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    def fault() -> None:
        if kind == "disk":
            monkeypatch.setattr(Store, "jpeg", broken)
        else:
            with path.open("r+b") as file:
                file.write(bytes(len(before) // 2))

    at_step(3, fault, monkeypatch)
    code = front_door("python -m train", COMMANDS, said_by(own_store, tmp_path / "run", *words))
    assert code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "crc32c" in line if kind == "bytes" else "Input/output error" in line
    step = read_checkpoint(tmp_path / "run", say=pytest.fail)["step"]
    assert 2 <= step < 24

    path.write_bytes(before)
    monkeypatch.setattr(Store, "jpeg", healthy)
    monkeypatch.setattr(train.loop, "train_step", train_step)
    assert run(config(own_store, tmp_path / "run", *words)) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "run")


def test_a_nan_in_a_batch_ends_the_run_before_a_bad_checkpoint(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["steps=20", "checkpoint_every=2", "log_every=2"]

    def take(state: Any, batch: Any, *rest: Any) -> Any:
        if state.step == 5:
            batch.joints_3d[2, 0, 4] = torch.nan
        return train_step(state, batch, *rest)

    monkeypatch.setattr(train.loop, "train_step", take)
    code = front_door("python -m train", COMMANDS, said_by(freihand, tmp_path / "run", *words))
    assert code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "not finite in 1 steps, first at step 5: samples [" in line
    assert "(first: sample " in line
    assert read_checkpoint(tmp_path / "run", say=pytest.fail)["step"] == 4
    monkeypatch.setattr(train.loop, "train_step", train_step)
    assert run(config(freihand, tmp_path / "run", *words)) == 0
    assert run(config(freihand, tmp_path / "whole", *words)) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_device_too_small_for_its_cache_streams_and_says_so(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10)
    with caplog.at_level("INFO"):
        assert run(config(freihand, tmp_path / "run", "steps=3")) == 0
    assert any(message.startswith("stream: 64 samples on a device") for message in caplog.messages)
