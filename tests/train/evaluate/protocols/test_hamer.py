"""HaMeR's files: scores equal the loops, what is missing or broken is named."""

from pathlib import Path

import numpy as np
import pytest

from tests.reference import hamer as loops
from tests.train.evaluate.protocols.hands import near, points, save_npz
from train.evaluate.protocols import hamer
from train.evaluate.protocols.report import Report

NUM = 9
Arrays = dict[str, np.ndarray]


def files(seed: int) -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(seed)
    joints, joints_2d = points(rng, NUM, 21), rng.uniform(0, 200, (NUM, 21, 2))
    confidence = rng.uniform(0.2, 1, (NUM, 21))
    truth = {"joints": joints, "joints_2d": joints_2d, "confidence": confidence}
    truth["box_px"] = rng.uniform(80, 120, NUM)
    pred = {"joints": near(rng, joints, 0.01)}
    pred["joints_2d"] = joints_2d + rng.normal(0, 8, joints_2d.shape)
    return pred, truth


def scored(folder: Path, pred: Arrays, truth: Arrays, *, strict: bool = False) -> Report:
    for name, arrays in (("pred", pred), ("truth", truth)):
        save_npz(folder / f"{name}.npz", arrays)
    return hamer.score(folder / "pred.npz", folder / "truth.npz", strict=strict)


@pytest.mark.parametrize("strict", [False, True])
def test_scores_are_those_of_the_loops(tmp_path: Path, *, strict: bool) -> None:
    pred, truth = files(0)
    report = scored(tmp_path, pred, truth, strict=strict)
    expected = loops.pose(truth["joints"], pred["joints"], strict=strict)
    found = report.official["mode_mpjpe"], report.official["mode_re"]
    assert found == pytest.approx(expected, rel=1e-9)
    labelled = truth["joints_2d"], truth["confidence"], truth["box_px"]
    for limit in (0.05, 0.1, 0.15):
        _, share = loops.pck(pred["joints_2d"], *labelled, limit, strict=strict)
        assert report.official[f"kpAvg_pck_{limit:g}"] == pytest.approx(share, rel=1e-9)
    assert report.num_samples == NUM
    assert report.warnings == ()


def test_one_of_the_two_alone_is_scored(tmp_path: Path) -> None:
    pred, truth = files(1)
    pose = scored(tmp_path, {"joints": pred["joints"]}, {"joints": truth["joints"]})
    assert [row.label for row in pose.rows][:2] == ["MPJPE", "PA-MPJPE"]
    pck = scored(tmp_path, {"joints_2d": pred["joints_2d"]}, truth)
    assert [row.label for row in pck.rows] == ["PCK@0.05", "PCK@0.1", "PCK@0.15"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"joints": None, "joints_2d": None}, "holds neither joints nor joints_2d"),
        ({"joints": np.zeros((3, 21, 3)), "joints_2d": None}, "hold 3 rows of joints, .* holds 9"),
        ({"joints": np.full((9, 21, 3), np.nan)}, r"pred.npz, joints: 9 of 9 .* \(first: 0\)"),
        (
            {"joints_2d": np.full((9, 21, 2), np.inf)},
            "pred.npz, joints_2d: 9 of 9 samples",
        ),
    ],
)
def test_a_broken_prediction_is_one_sentence(
    tmp_path: Path, change: dict[str, np.ndarray | None], expected: str
) -> None:
    pred, truth = files(2)
    arrays = {k: v for k, v in {**pred, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=expected):
        scored(tmp_path, arrays, truth)


def test_a_truth_that_lacks_a_key_or_is_in_millimetres_is_named(tmp_path: Path) -> None:
    pred, truth = files(3)
    with pytest.raises(ValueError, match=r"truth.npz lacks box_px for the predicted joints, joi"):
        scored(tmp_path, pred, {k: v for k, v in truth.items() if k != "box_px"})
    both = ({**arrays, "joints": arrays["joints"] * 1000} for arrays in (pred, truth))
    with pytest.raises(ValueError, match=r"look like millimetres.* as large as a hand"):
        scored(tmp_path, *both)
