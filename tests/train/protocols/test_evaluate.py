"""The command: its forms, its JSON, official scores of a run, and exported files scored again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import compose
from tests.conftest import SampleStore
from tests.train.protocols.hands import near, points
from tests.train.test_run import config
from train.config import EvaluateConfig
from train.evaluate import main as evaluate
from train.protocols.files import write_two_lists
from train.run import main as run


def composed(*words: str) -> EvaluateConfig:
    built = compose(EvaluateConfig, words)
    assert isinstance(built, EvaluateConfig)
    return built


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "got none of them"),
        (["run=r"], "give run=... store=... to score a run.*got run"),
        (["protocol=freihand", "predictions=p"], "got protocol and predictions"),
        (["run=r", "store=s", "protocol=world", "predictions=p", "truth=t"], "got run and store"),
        (["protocol=freihand", "predictions=p", "truth=t", "export=x"], "give run=... store=..."),
        (["run=r", "store=s", "root_depth=x"], "belongs to protocol=interhand26m"),
    ],
)
def test_half_a_form_is_refused(words: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        composed(*words)


def test_files_are_scored_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    joints, vertices = points(rng, 4, 21), points(rng, 4, 778)
    write_two_lists(tmp_path / "truth.json", joints, vertices)
    write_two_lists(tmp_path / "pred.json", near(rng, joints, 0.01), near(rng, vertices, 0.01))
    words = [f"predictions={tmp_path / 'pred.json'}", f"truth={tmp_path / 'truth.json'}"]
    assert evaluate(composed("protocol=freihand", *words, f"out={tmp_path / 'out'}")) == 0
    shown = capsys.readouterr().out
    assert "4 samples; crop: none: the predictions came as a file" in shown
    assert "quirk: the alignment may be a reflection" in shown
    assert "the official evaluation has 3960" in shown
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert record["official"]["xyz_al_mean3d"] == record["scores"]["pa_mpjpe_mm"] / 10
    assert record["strict"] is False
    assert evaluate(composed("protocol=freihand", *words, "strict=true")) == 0
    assert "quirk" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    words = [f"predictions={tmp_path / 'no'}", f"truth={tmp_path}"]
    with pytest.raises(FileNotFoundError, match=r"predictions='.*no' does not exist"):
        evaluate(composed("protocol=world", *words))


def scored(data: SampleStore, folder: Path, split: str, *words: str) -> dict[str, Any]:
    """Train two steps, score a split, export, and return scores.json."""
    settings = config(data, folder / "run", "steps=2", "batch_size=8")
    assert run(settings) == 0
    out = folder / "scores"
    base = [f"run={folder / 'run'}", f"store={data.store}", f"mano={data.mano}", f"split={split}"]
    assert evaluate(composed(*base, f"out={out}", "batch_size=5", *words)) == 0
    record: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return record


def test_a_freihand_run_is_scored_officially_and_its_export_scores_the_same(
    freihand: SampleStore, tmp_path: Path
) -> None:
    export = tmp_path / "pred.json"
    record = scored(freihand, tmp_path, "evaluation", f"export={export}")
    official = record["official"]
    assert official["num_samples"] == 8
    assert "MANO parameters" in official["camera"]
    ours = record["model"]["pa_mpjpe_mm"]
    assert official["scores"]["pa_mpjpe_mm"] == pytest.approx(ours, rel=1e-4)
    words = [f"predictions={export}", f"truth={freihand.root}", f"out={tmp_path / 'files'}"]
    assert evaluate(composed("protocol=freihand", *words)) == 0
    again = json.loads((tmp_path / "files" / "scores.json").read_text())
    # The sample's files round to 4 digits and its mesh comes from the file, not from MANO.
    for name, value in official["scores"].items():
        assert again["scores"][name] == pytest.approx(value, rel=2e-3, abs=2e-3), name


def test_an_interhand_run_is_scored_officially_and_its_export_scores_the_same(
    interhand: SampleStore, tmp_path: Path
) -> None:
    export = tmp_path / "pred.npz"
    record = scored(interhand, tmp_path, "test", f"export={export}")
    official = record["official"]["scores"]
    assert official["handedness_accuracy"] is None
    truth = interhand.root / "annotations" / "test"
    words = [f"predictions={export}", f"truth={truth}", f"out={tmp_path / 'files'}"]
    assert evaluate(composed("protocol=interhand26m", *words)) == 0
    again = json.loads((tmp_path / "files" / "scores.json").read_text())["scores"]
    for name in ("mpjpe_mm", "mpjpe_single_mm", "mpjpe_interacting_mm", "mrrpe_mm", "num_samples"):
        assert again[name] == pytest.approx(official[name], rel=1e-5), name
    assert again["handedness_accuracy"] == 1.0


def test_an_export_without_a_format_is_refused(freihand: SampleStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no submission format for split=train of dataset 'freih"):
        scored(freihand, tmp_path, "train", f"export={tmp_path / 'x'}")


def test_a_path_with_brackets_is_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    write_two_lists(tmp_path / "t.json", points(rng, 2, 21), points(rng, 2, 778))
    words = [f"predictions={tmp_path / 't.json'}", f"truth={tmp_path / 't.json'}"]
    out = tmp_path / "x[/y]"
    assert evaluate(composed("protocol=freihand", *words, f"out={out}", "strict=true")) == 0
    assert str(out) in capsys.readouterr().out
    assert json.loads((out / "scores.json").read_text())["official"] is None
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        evaluate(composed("protocol=freihand", *words, f"out={tmp_path / 't.json'}"))
