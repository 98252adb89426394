"""A store that lost files is refused by every command, and the file is named."""

import shutil
from pathlib import Path

import pytest

from pipeline.app.cli import front_door
from tests.conftest import SampleStore
from tests.test_docs import PACKAGES
from tests.train.state.test_checkpoint import TINY, config
from train.run import main as run


@pytest.mark.parametrize("lost", ["labels/joints_3d", "splits/evaluation"])
def test_every_command_refuses_a_store_that_lost_a_chunk(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    store, run_dir = tmp_path / "s.zarr", tmp_path / "run"
    shutil.copytree(freihand.store, store)
    assert run(config(freihand, run_dir, "steps=1", "model.head=joints")) == 0
    files = [path for path in (store / lost).rglob("*") if path.is_file()]
    chunk = next(path for path in files if path.name != "zarr.json")
    chunk.unlink()
    new = tmp_path / "new"
    for package, name, words, code in (
        ("preprocess", "verify-cache", [], 1),
        ("preprocess", "show-cache", [f"out={new}.png"], 2),
        ("pipeline", "plan", [], 2),
        ("pipeline", "bench", ["device=cpu"], 2),
        ("train", "doctor", [], 1),
        ("train", "run", [f"run_dir={new}", "model.head=joints", *TINY], 2),
        ("train", "run", [f"resume={run_dir}", "steps=2"], 2),
        ("train", "evaluate", [f"run={run_dir}", f"out={new}", "device=cpu"], 2),
    ):
        capsys.readouterr()
        given = [name, f"store={store}", *words]
        assert front_door(f"python -m {package}", PACKAGES[package], given) == code, given
        said = capsys.readouterr()
        text = "".join((said.out + said.err).split())
        if name != "doctor":  # whose table breaks names over lines
            assert f"(first:{chunk.relative_to(store)})" in text, given
        assert not list(tmp_path.glob("new*")), given
