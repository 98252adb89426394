"""A run used from another folder, and after its files have moved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.mano.files import MANO_ENV
from pipeline.app.cli import compose
from tests.conftest import SampleStore, scores_file
from tests.train.test_run import SMALL
from train.config import EvaluateConfig, RunConfig
from train.evaluate.evaluate import main as evaluate
from train.predict.hands import Predictor
from train.run import main as run
from train.state.load import load_run


@pytest.fixture
def moved(freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, where a run was trained with relative paths; one is now elsewhere."""
    monkeypatch.delenv(MANO_ENV, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(freihand.store, home / "data.zarr")
    shutil.copytree(freihand.mano, home / "mano")
    monkeypatch.chdir(home)
    words = ["store=data.zarr", "mano=mano", "run_dir=run", "steps=1", *SMALL]
    assert run(compose(RunConfig, words)) == 0
    assert run(compose(RunConfig, words)) == 0  # the same command goes on
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


def test_a_run_is_used_from_another_folder(moved: Path) -> None:
    manifest = json.loads((moved / "run" / "manifest.json").read_text())
    assert manifest["config"]["mano"] == str(moved / "mano")
    assert manifest["config"]["pipeline"]["store"] == str(moved / "data.zarr")
    words = [f"run={moved / 'run'}", f"store={moved / 'data.zarr'}"]
    assert evaluate(compose(EvaluateConfig, words)) == 0
    record = json.loads(scores_file(moved / "run").read_text())
    folder = scores_file(moved / "run").parent.name
    assert folder == f"evaluate-data-{record['store_sha256'][:8]}-evaluation"
    assert record["store"] == str(moved / "data.zarr")
    assert run(compose(RunConfig, [f"resume={moved / 'run'}", "steps=2"])) == 0


def test_a_file_that_is_not_here_is_named(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(moved / "data.zarr", moved / "new.zarr")
    resume = [f"resume={moved / 'run'}", "steps=2"]
    missing = f"store={moved / 'data.zarr'}, which is not here; pass store=PATH"
    with pytest.raises(FileNotFoundError, match=missing):
        run(compose(RunConfig, resume))
    shutil.move(moved / "mano", moved / "licensed")
    missing = f"trained with mano={moved / 'mano'}, which is not here; pass mano=FOLDER or set"
    store = f"store={moved / 'new.zarr'}"
    with pytest.raises(FileNotFoundError, match=missing):
        run(compose(RunConfig, [*resume, store]))
    with pytest.raises(FileNotFoundError, match=missing):
        evaluate(compose(EvaluateConfig, [f"run={moved / 'run'}", store]))
    with pytest.raises(FileNotFoundError, match=missing):
        Predictor.from_run(moved / "run", device="cpu")
    monkeypatch.setenv(MANO_ENV, str(moved / "licensed"))
    assert load_run(moved / "run", device="cpu").step == 1
    with pytest.raises(ValueError, match="checkpoint must be one of latest, best, got 'newest'"):
        load_run(moved / "run", checkpoint="newest")
    assert run(compose(RunConfig, [*resume, store])) == 0


def test_the_mano_files_of_another_training_are_refused(moved: Path, tmp_path: Path) -> None:
    shutil.copytree(moved / "mano", tmp_path / "other")
    right = tmp_path / "other" / "MANO_RIGHT.npz"
    with np.load(right) as file:
        arrays = dict(file)
    np.savez(right, allow_pickle=False, **arrays | {"hands_mean": arrays["hands_mean"] + 0.1})
    with pytest.raises(ValueError, match=r"trained with other MANO files .*another hand"):
        load_run(moved / "run", device="cpu", mano=tmp_path / "other")
