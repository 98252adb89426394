"""Stores of more shards than files may be open; ``make soak``: on every command."""

import resource
from pathlib import Path

import pytest

from tests.conftest import SampleStore
from tests.train.forked import as_command, start
from tests.train.state.test_checkpoint import TINY

MOST_OPEN = 64


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_store_of_many_shards_is_built_and_used(
    freihand: SampleStore, tmp_path: Path, *, every: bool
) -> None:
    store, data = tmp_path / "s.zarr", f"mano={freihand.mano}"
    build = ("dataset=freihand", f"root={freihand.root}", f"out={store}", "shard_rows=1")
    tiny = (*TINY, "steps=2", "validation.split=evaluation", "cache.codec=stream", "threads=1")
    run_dir = tmp_path / "run"
    commands = [
        ("preprocess", ("build-cache", *build, data, "workers=1")),
        ("train", ("run", f"store={store}", data, f"run_dir={run_dir}", *tiny)),
    ]
    if every:
        commands += [
            ("preprocess", ("verify-cache", f"store={store}", f"root={freihand.root}", data)),
            ("preprocess", ("show-cache", f"store={store}", f"out={tmp_path / 'sheet.png'}")),
            ("train", ("evaluate", f"run={run_dir}", f"store={store}", "device=cpu")),
        ]
    said = tmp_path / "said"
    for package, words in commands:
        process = start(
            as_command, package, words, tmp_path, said, {resource.RLIMIT_NOFILE: MOST_OPEN}
        )
        process.join(120)
        assert process.exitcode == 0, said.read_text()
    assert len(list((store / "image" / "bytes" / "c").iterdir())) > MOST_OPEN
