"""The command: its forms, its JSON, official scores of a run, and exported files scored again."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.app.cli import compose
from pipeline.store.reader import open_store
from tests.conftest import SampleStore
from tests.pipeline.hand_store import hand_store
from tests.preprocess.datasets import write_mano
from tests.train.evaluate.protocols.hands import near, points
from tests.train.test_run import config
from train.config import EvaluateConfig
from train.evaluate.evaluate import main as evaluate
from train.evaluate.evaluate import require_fitting
from train.evaluate.protocols.files import write_two_lists
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
        (["run=r", "store=s", "min_track=16"], "belong to protocol=world"),
        (["protocol=freihnad"], "did you mean 'freihand'"),
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
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "pred.json"
    record = scored(freihand, tmp_path, "evaluation", f"export={export}")
    official = record["official"]
    assert official["num_samples"] == 8
    assert "MANO parameters" in official["camera"]
    ours = record["model"]["pa_mpjpe_mm"]
    assert official["scores"]["pa_mpjpe_mm"] == pytest.approx(ours, rel=1e-4)
    words = [f"predictions={export}", f"truth={freihand.root}", f"out={tmp_path / 'files'}"]
    capsys.readouterr()
    assert evaluate(composed("protocol=freihand", *words)) == 0
    again = json.loads((tmp_path / "files" / "scores.json").read_text())
    said = f"{freihand.root} is synthetic, rendered by make-sample: these scores test the software"
    assert said in capsys.readouterr().out.replace("\n", " ")
    assert again["synthetic"] is True
    (tmp_path / "files" / "scores.json").write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match=r"holds scores\.json, which would be replaced"):
        evaluate(composed("protocol=freihand", *words))
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
    found = json.loads((tmp_path / "files" / "scores.json").read_text())
    assert found["synthetic"] is True  # by the folder that annotations/test lies in
    again = found["scores"]
    for name in ("mpjpe_mm", "mpjpe_single_mm", "mpjpe_interacting_mm", "mrrpe_mm", "num_samples"):
        assert again[name] == pytest.approx(official[name], rel=1e-5), name
    assert again["handedness_accuracy"] == 1.0


def test_an_export_without_a_format_is_refused(freihand: SampleStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no official protocol for split=train of dataset 'freih"):
        scored(freihand, tmp_path, "train", f"export={tmp_path / 'x'}")


@pytest.mark.parametrize(
    ("export", "endings", "expected"),
    [
        ("pred.txt", (".json", ".zip"), "written as .json or .zip, got '.txt'"),
        ("results.zip", (".txt",), "written as .txt, got '.zip'"),
        (".", (".npz",), "is a folder, expected a file"),
        ("clips.zip", (), "is a file, expected a folder"),
    ],
)
def test_an_export_of_another_format_is_refused(
    export: str, endings: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        require_fitting(export, endings)
    require_fitting("PRED.ZIP", (".json", ".zip"))
    require_fitting("results", (".txt",))


def whole_hands(row: int, values: dict[str, Any]) -> None:
    """Give every hand all of its joints."""
    for slot in np.flatnonzero(values["has_joints"]):
        values["joints_3d"][slot, 7] = values["joints_3d"][slot, 6] + 0.01
        values["joint_valid"][slot] = True


def test_a_dexycb_run_is_scored_officially_and_its_export_scores_the_same(tmp_path: Path) -> None:
    """Left hands are mirrored on the way in and back; frames without a hand count in the index."""
    store = hand_store(
        tmp_path / "dex.zarr",
        12,
        attributes={"dataset": "dexycb", "joint_set": "manopth"},
        has_hand=lambda row, slot: row % 4 != 3 and row % 2 == slot,
        splits={"train": range(6), "s1_test": [9, 7, 6, 8, 11, 10, 5]},
        edit=whole_hands,
    )
    write_mano(tmp_path / "mano")
    data = SampleStore(root=tmp_path, mano=tmp_path / "mano", store=store)
    results = tmp_path / "results.txt"
    run_dir, out = tmp_path / "run", tmp_path / "scores"
    assert run(config(data, run_dir, "steps=2", "batch_size=3", "model.head=joints")) == 0
    words = [f"run={run_dir}", f"store={store}", "split=s1_test", f"export={results}"]
    assert evaluate(composed(*words, f"out={out}", "batch_size=2")) == 0
    official = json.loads((out / "scores.json").read_text())["official"]
    assert official["num_samples"] == 5
    assert [int(line.split(",")[0]) for line in results.read_text().splitlines()] == [0, 2, 3, 5, 6]

    joints = open_store(store).label("joints_3d")
    truth = {}
    for index, row in enumerate([9, 7, 6, 8, 11, 10, 5]):
        metres = joints[row, row % 2]
        truth[index] = np.full((21, 3), -1000.0) if row % 4 == 3 else metres * np.float32(1000)
    (tmp_path / "anno_hpe_s1_test.pkl").write_bytes(pickle.dumps({"joint_3d": truth}))
    files = [f"predictions={results}", f"truth={tmp_path}", f"out={tmp_path / 'files'}"]
    assert evaluate(composed("protocol=dexycb", *files)) == 0
    again = json.loads((tmp_path / "files" / "scores.json").read_text())
    assert again["scores"] == pytest.approx(official["scores"], rel=1e-6, abs=1e-5)


HO3D_EVALUATION = [10, 8, 11, 9]


def ho3d_store(path: Path, *, without_box: int = -1) -> Path:
    """Right hands; evaluation frames have a wrist (11 not even that) and a box, and no mesh."""

    def labels(row: int, values: dict[str, Any]) -> None:
        whole_hands(row, values)
        if row in HO3D_EVALUATION:
            values["joint_valid"][0, 1:] = False
            values["joints_3d"][0, 1:] = np.nan
            values["has_mano"][0] = values["has_beta"][0] = False
        if row == 11:
            values["joint_valid"][0] = values["has_joints"][0] = False
            values["joints_3d"][0] = np.nan
        if row == without_box:
            values["bbox_xyxy"][0] = np.nan

    return hand_store(
        path,
        12,
        attributes={"dataset": "ho3d", "joint_set": "ho3d"},
        has_hand=lambda _, slot: slot == 0,
        splits={"train": range(8), "evaluation": HO3D_EVALUATION},
        edit=labels,
    )


@pytest.fixture(scope="module")
def ho3d_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run on such a store that wants joints in training, as the words that evaluate it."""
    folder = tmp_path_factory.mktemp("ho3d")
    write_mano(folder / "mano")
    store = ho3d_store(folder / "s.zarr")
    data = SampleStore(root=folder, mano=folder / "mano", store=store)
    settings = config(data, folder / "run", "steps=1", "pipeline.view.require_joints=true")
    assert run(settings) == 0
    return [f"run={folder / 'run'}", f"store={store}", f"mano={data.mano}"]


def test_without_the_truth_nothing_of_ho3d_is_made_up(
    ho3d_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "pred.json"
    assert evaluate(composed(*ho3d_run, f"export={export}", f"out={tmp_path}")) == 0
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["model"] is None
    assert record["official"] is None
    assert "4 of 4 rows have no true joints or no true mesh" in record["official_lacks"]
    assert record["crop"] == "the dataset's handBoundingBox"
    shown = capsys.readouterr().out
    assert "no hand of the split has three labelled joints" in shown
    assert "no official score: " in shown
    joints, vertices = (np.array(part) for part in json.loads(export.read_text()))
    assert joints.shape == (4, 21, 3)
    assert vertices.shape == (4, 778, 3)
    assert (joints[..., 2] < 0).all()


def test_a_ho3d_run_is_scored_by_the_public_truth_and_its_export_scores_the_same(
    ho3d_run: list[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    (tmp_path / "truth").mkdir()
    for name, num in (("xyz", 21), ("verts", 778)):
        values = points(rng, 4, num) * [1, -1, -1]
        (tmp_path / "truth" / f"evaluation_{name}.json").write_text(json.dumps(values.tolist()))
    export, truth = tmp_path / "pred.json", f"truth={tmp_path / 'truth'}"
    assert evaluate(composed(*ho3d_run, truth, f"export={export}", f"out={tmp_path}")) == 0
    official = json.loads((tmp_path / "scores.json").read_text())["official"]
    assert official["num_samples"] == 4
    files = [f"predictions={export}", truth, f"out={tmp_path / 'files'}"]
    assert evaluate(composed("protocol=ho3d", *files)) == 0
    again = json.loads((tmp_path / "files" / "scores.json").read_text())
    assert again["scores"] == pytest.approx(official["scores"], rel=1e-9)


def test_an_export_of_a_row_without_a_crop_is_refused_before_anything_runs(
    ho3d_run: list[str], tmp_path: Path
) -> None:
    store = ho3d_store(tmp_path / "s.zarr", without_box=8)
    export = tmp_path / "pred.json"
    words = [ho3d_run[0], ho3d_run[2], f"store={store}", f"export={export}", f"out={tmp_path}"]
    with pytest.raises(ValueError, match=r"export: .*1 of 4 rows cannot be predicted.*row 8"):
        evaluate(composed(*words))
    assert not export.exists()
    assert not (tmp_path / "predictions.png").exists()


def test_truth_without_a_protocol_for_it_is_refused(ho3d_run: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"truth: no official protocol for split=train of .*ho3d"):
        evaluate(composed(*ho3d_run, f"truth={tmp_path}", "split=train"))
    with pytest.raises(FileNotFoundError, match=r"lacks evaluation_xyz\.json"):
        evaluate(composed(*ho3d_run, f"truth={tmp_path}"))


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
