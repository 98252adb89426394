"""Details: their means are the scores, in either format, of files and of runs."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.app.cli import compose, front_door
from tests.conftest import SampleStore
from tests.train.evaluate.protocols import test_arctic, test_hamer, test_world
from tests.train.evaluate.protocols.hands import near, points, save_npz
from tests.train.test_run import config
from train.__main__ import COMMANDS
from train.config import EvaluateConfig
from train.evaluate.evaluate import main as evaluate
from train.evaluate.protocols import arctic, dexycb, ho3d, interhand26m, world
from train.evaluate.protocols.details import COLUMNS, Detail, write_details
from train.evaluate.protocols.files import write_two_lists
from train.evaluate.protocols.report import Report, as_json, write_json
from train.run import main as run

Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def means_of(report: Report) -> dict[str, float]:
    assert report.details is not None
    found = {}
    for detail in report.details():
        seen = ~np.isnan(detail.errors)
        points = seen.any(0)
        total = np.where(seen, detail.errors, 0).sum(0)[points]
        found[detail.name] = float(np.mean(total / seen.sum(0)[points])) if seen.any() else np.nan
    return found


def agree(report: Report, names: set[str]) -> None:
    means = means_of(report)
    assert means.keys() >= names
    for name, value in means.items():
        if report.scores.get(name) is not None:
            assert value == pytest.approx(report.scores[name], rel=1e-7), name


@pytest.mark.parametrize("strict", [False, True])
def test_their_means_are_the_scores(tmp_path: Path, *, strict: bool) -> None:
    rng = np.random.default_rng(0)
    joints, vertices = points(rng, 5, 21), points(rng, 5, 778)
    guess = near(rng, joints, 0.01)
    guess[0] = joints[0] * [-1, 1, 1]
    flipped = [x * [1, -1, -1] for x in (guess, near(rng, vertices, 0.01), joints, vertices)]
    mesh = ho3d.report(*flipped, source="truth", strict=strict)
    agree(mesh, {"mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm", "st_mpjpe_mm"})
    agree(
        dexycb.report(guess * 1000, joints * 1000, strict=strict),
        {"mpjpe_mm", "rr_mpjpe_mm", "pa_mpjpe_mm"},
    )
    pred, truth = test_hamer.files(0)
    agree(test_hamer.scored(tmp_path, pred, truth, strict=strict), {"mpjpe_mm", "pa_mpjpe_mm"})
    for name, arrays in zip(("p", "t"), test_world.motion(0), strict=True):
        save_npz(tmp_path / f"{name}.npz", arrays)
    found = world.score(tmp_path / "p.npz", tmp_path / "t.npz", strict=strict)
    agree(found, {"w_mpjpe_mm", "wa_mpjpe_mm", "pa_mpjpe_mm", "accel_m_s2", "rte_percent"})
    for name, arrays in zip(("p", "t"), test_arctic.sequence(0), strict=True):
        save_npz(tmp_path / f"{name}.npz", arrays)
    found = arctic.score(tmp_path / "p.npz", tmp_path / "t.npz", strict=strict)
    agree(found, {"cdev/ho", "mpjpe/ra/h", "aae", "avg/ho"})


def test_those_of_interhand_leave_out_what_is_not_scored() -> None:
    rng = np.random.default_rng(1)
    joints = np.concatenate([points(rng, 6, 21), points(rng, 6, 21)], 1) * 1000
    valid = np.ones((6, 42), bool)
    valid[:3, 21:] = False
    valid[4, 7] = False
    guess = joints + rng.normal(0, 8, joints.shape)
    truth = interhand26m.Truth(
        joints_mm=joints, joint_valid=valid, hand_type=np.array([0, 0, 0, 2, 2, 2]),
        hand_type_valid=np.ones(6, bool), focal_px=np.ones((6, 2)), princpt_px=np.ones((6, 2)),
        root_depth_mm=np.ones((6, 2)), depth_source="", file_position=np.arange(6),
    )  # fmt: skip
    pred = interhand26m.Predictions(
        joints_mm=guess, hand_type=np.ones((6, 2)), left_from_right_mm=guess[:, 41] - guess[:, 20]
    )
    agree(interhand26m.report(pred, truth, strict=False), {"mpjpe_mm", "mrrpe_mm"})


def test_a_table_has_samples_points_a_curve_and_medians(tmp_path: Path) -> None:
    errors = np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]])
    detail = Detail(name="x_mm", errors=errors, max_error=9.9, samples=[7, 8, 9])
    write_details(tmp_path / "d.csv", [detail])
    rows = rows_of(tmp_path / "d.csv")
    assert tuple(rows[0]) == COLUMNS
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    assert [(row["sample"], float(row["value"])) for row in by_kind["sample"]] == [
        ("7", 1.5),
        ("8", 3.0),
    ]
    assert [(row["point"], float(row["value"])) for row in by_kind["point"]] == [
        ("0", 2.0),
        ("1", 2.0),
    ]
    assert float(by_kind["mean"][0]["value"]) == float(by_kind["median"][0]["value"]) == 2.0
    curve = {float(row["threshold"]): float(row["value"]) for row in by_kind["pck"]}
    assert len(curve) == 100
    assert [curve[t] for t in sorted(curve)[5:36:10]] == [0.0, 0.25, 0.75, 1.0]

    write_details(tmp_path / "d.parquet", [detail])
    table = pq.read_table(tmp_path / "d.parquet").to_pylist()
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in table] == rows


@pytest.mark.parametrize(
    ("name", "expected"),
    [("d.xlsx", "must end in .csv or .parquet, got '.xlsx'"), ("d.parquet", "needs pyarrow")],
)
def test_a_table_that_cannot_be_written_is_refused_first(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    words = ["protocol=freihand", "predictions=p", "truth=t", f"details={tmp_path / name}"]
    built = compose(EvaluateConfig, words)
    with pytest.raises(ValueError, match=expected):
        evaluate(built)


def test_the_details_of_a_run_are_those_of_its_scores(
    freihand: SampleStore, tmp_path: Path
) -> None:
    assert run(config(freihand, tmp_path / "run", "steps=1", "batch_size=8")) == 0
    words = [f"run={tmp_path / 'run'}", f"store={freihand.store}", f"mano={freihand.mano}"]
    words += [f"details={tmp_path / 'd.csv'}", f"out={tmp_path}"]
    assert evaluate(compose(EvaluateConfig, words)) == 0
    record = json.loads((tmp_path / "scores.json").read_text())
    rows = rows_of(tmp_path / "d.csv")
    means = {row["metric"]: float(row["value"]) for row in rows if row["kind"] == "mean"}
    for name in ("mpjpe_mm", "pa_mpjpe_mm"):
        assert means[f"hand/{name}"] == pytest.approx(record["model"][name], rel=1e-9)
        assert means[f"official/{name}"] == pytest.approx(
            record["official"]["scores"][name], rel=1e-9
        )


def test_infinite_scores_are_written_as_text(tmp_path: Path) -> None:
    pred, truth = test_world.motion(1)
    truth["root"] = truth["root"] * 0
    for name, arrays in (("p", pred), ("t", truth)):
        save_npz(tmp_path / f"{name}.npz", arrays)
    report = world.score(tmp_path / "p.npz", tmp_path / "t.npz", strict=False)
    write_json(tmp_path / "scores.json", as_json(report) | {"nested": [(float("nan"),)]})
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["scores"]["rte_percent"] == record["official"]["RTE"] == "Infinity"
    assert record["nested"] == [["NaN"]]
    assert float("Infinity") == float(record["official"]["RTE"])


def test_the_file_of_a_bad_prediction_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    joints, vertices = points(rng, 4, 21), points(rng, 4, 778)
    write_two_lists(tmp_path / "truth.json", joints, vertices)
    joints[2, 3] = np.nan
    write_two_lists(tmp_path / "pred.json", joints, vertices)
    words = ["protocol=freihand", f"predictions={tmp_path / 'pred.json'}"]
    words += [f"truth={tmp_path / 'truth.json'}"]
    assert front_door("python -m train", COMMANDS, ["evaluate", *words]) == 2
    said = capsys.readouterr().err
    assert "pred.json': predicted joints: 1 of 4 samples hold NaN or infinity (first: 2)" in said


def test_help_names_every_key_of_interhand(capsys: pytest.CaptureFixture[str]) -> None:
    assert front_door("python -m train", COMMANDS, ["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    for key in ("left_from_right_mm", "rel_root_depth", "is_right", "box_px", "details="):
        assert key in said
