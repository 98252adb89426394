"""ARCTIC's arrays: both tasks, many sequences, and what can be wrong with a file."""

from pathlib import Path

import numpy as np
import pytest

from tests.reference import arctic as loops
from tests.train.evaluate.protocols.hands import save_npz
from train.evaluate.protocols import arctic

FRAMES, VERTICES = 4, 30
Arrays = dict[str, np.ndarray]


def sequence(seed: int, num_vertices: int = VERTICES) -> tuple[Arrays, Arrays]:
    """Return a prediction of both tasks and its truth."""
    rng = np.random.default_rng(seed)
    centre = np.array([0.0, 0.0, 0.8])
    truth: Arrays = {
        "joints_right": rng.normal(0, 0.05, (FRAMES, 21, 3)) + centre,
        "joints_left": rng.normal(0, 0.05, (FRAMES, 21, 3)) + centre + 0.1,
        "vertices_right": rng.normal(0, 0.05, (FRAMES, 778, 3)) + centre,
        "vertices_left": rng.normal(0, 0.05, (FRAMES, 778, 3)) + centre + 0.1,
        "object_vertices": rng.normal(0, 0.06, (FRAMES, num_vertices, 3)) + centre,
        "arti_rad": rng.uniform(0, 1, FRAMES),
    }
    pred = {name: value + rng.normal(0, 0.01, value.shape) for name, value in truth.items()}
    for key, shape in (("ro", 778), ("lo", 778), ("or", num_vertices), ("ol", num_vertices)):
        pred[f"dist_{key}"] = rng.uniform(0, 0.1, (FRAMES, shape))
    truth |= {
        "is_valid": np.array([1.0, 1, 1, 0]),
        "right_valid": np.array([1.0, 0, 1, 1]),
        "left_valid": np.ones(FRAMES),
        "part_ids": rng.integers(1, 3, num_vertices),
        "diameter_m": np.array(0.3),
    }
    return pred, truth


def written(folder: Path, name: str, arrays: Arrays) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.npz"
    save_npz(path, arrays)
    return path


def mean(values: list[np.ndarray]) -> float:
    return float(np.nanmean(np.concatenate(values)))


def test_two_sequences_are_scored_together(tmp_path: Path) -> None:
    pairs = {"s05_box_grab_01_1": sequence(0), "s05_laptop_use_02_1": sequence(1, 12)}
    for name, (pred, truth) in pairs.items():
        written(tmp_path / "pred", name, pred)
        written(tmp_path / "truth", name, truth)
    report = arctic.score(tmp_path / "pred", tmp_path / "truth", strict=False)
    valid = [(t["right_valid"], t["left_valid"]) for _, t in pairs.values()]
    expected_aae, expected_rl, expected_mpjpe, expected_field = [], [], [], []
    for (pred, truth), hands in zip(pairs.values(), valid, strict=True):
        true_joints = truth["joints_right"], truth["joints_left"]
        joints = pred["joints_right"], pred["joints_left"]
        is_valid = truth["is_valid"]
        expected_aae.append(loops.aae(truth["arti_rad"], pred["arti_rad"], is_valid))
        expected_mpjpe.append(loops.mpjpe_ra(true_joints, joints, hands, is_valid))
        expected_rl.append(loops.mrrpe_rl(true_joints, joints, hands, is_valid))
        right, left, thing = (
            truth[name] for name in ("vertices_right", "vertices_left", "object_vertices")
        )
        to_object = loops.nearest(right, thing)[0], loops.nearest(left, thing)[0]
        to_hand = loops.nearest(thing, right)[0], loops.nearest(thing, left)[0]
        guess = (pred["dist_ro"], pred["dist_lo"]), (pred["dist_or"], pred["dist_ol"])
        expected_field.append(loops.avg_field(to_object, to_hand, *guess, is_valid)[0])
    assert report.official["aae"] == pytest.approx(mean(expected_aae), rel=1e-9)
    assert report.official["mpjpe/ra/h"] == pytest.approx(mean(expected_mpjpe), rel=1e-9)
    assert report.official["mrrpe/r/l"] == pytest.approx(mean(expected_rl), rel=1e-9)
    assert report.official["avg/ho"] == pytest.approx(mean(expected_field), rel=1e-9)
    assert report.num_samples == 2 * FRAMES
    assert report.scores["num_sequences"] == 2
    labels = [row.label for row in report.rows]
    assert "CDev" in labels
    assert "field hand to object" in labels


def test_one_task_alone_is_scored(tmp_path: Path) -> None:
    pred, truth = sequence(2)
    target = written(tmp_path, "truth", truth)
    field = {key: value for key, value in pred.items() if key.startswith("dist_")}
    report = arctic.score(written(tmp_path, "pred", field), target, strict=False)
    assert "avg/ho" in report.official
    assert "aae" not in report.official


def test_a_missing_sequence_is_named(tmp_path: Path) -> None:
    pred, truth = sequence(3)
    written(tmp_path / "pred", "a", pred)
    for name in "ab":
        written(tmp_path / "truth", name, truth)
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 2 sequences \(first: b\.npz\)"):
        arctic.score(tmp_path / "pred", tmp_path / "truth", strict=False)
    with pytest.raises(ValueError, match=r"must both be \.npz files or both folders"):
        arctic.score(tmp_path / "pred" / "a.npz", tmp_path / "truth", strict=False)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"arti_rad": None}, "holds joints_right, .* but not arti_rad"),
        ({"dist_or": None}, "but not dist_or"),
        ({"arti_rad": np.zeros(3)}, r"'arti_rad' has shape \(3,\), expected \(4\)"),
        ({"dist_or": np.zeros((4, 5))}, r"'dist_or' has shape \(4, 5\), expected \(4, 30\)"),
        ({"extra": np.zeros(3)}, "unknown key 'extra'"),
        ({"joint_right": np.zeros(3)}, "did you mean 'joints_right'"),
        ({"arti_rad": np.array([0, 0, np.nan, np.nan])}, r"pred\.npz: predicted arti_rad: 1 of 3 "),
        ({"arti_rad": np.array(["a"] * 4)}, "'arti_rad' holds <U1, expected numbers"),
        ({"arti_rad": np.array([None] * 4)}, "'arti_rad' holds object, expected numbers"),
        ({"arti_rad": np.full(4, 40.0)}, "arti_rad looks like degrees"),
        ({"dist_ro": np.full((4, 778), 30.0)}, "dist_ro .*looks like millimetres"),
    ],
)
def test_a_broken_prediction_is_one_sentence(
    tmp_path: Path, change: dict[str, np.ndarray | None], expected: str
) -> None:
    pred, truth = sequence(4)
    arrays = {k: v for k, v in {**pred, **change}.items() if v is not None}
    target = written(tmp_path, "truth", truth)
    with pytest.raises(ValueError, match=expected):
        arctic.score(written(tmp_path, "pred", arrays), target, strict=False)


def test_another_length_or_unit_is_refused(tmp_path: Path) -> None:
    pred, truth = sequence(5)
    target = written(tmp_path, "truth", truth)
    shorter = written(tmp_path, "pred", {k: v[:3] for k, v in pred.items()})
    with pytest.raises(ValueError, match=r"hold 3 frames of .*, truth\.npz holds 4"):
        arctic.score(shorter, target, strict=False)
    other, _ = sequence(5, 12)
    with pytest.raises(ValueError, match=r"hold 12 object vertices, truth\.npz holds 30"):
        arctic.score(written(tmp_path, "pred", other), target, strict=False)
    pred["vertices_left"] = pred["vertices_left"] * 1000
    with pytest.raises(ValueError, match="vertices_left look like millimetres"):
        arctic.score(written(tmp_path, "pred", pred), target, strict=False)


def test_sequences_must_answer_the_same_tasks_in_the_same_unit(tmp_path: Path) -> None:
    pred, truth = sequence(6)
    for name in "ab":
        written(tmp_path / "truth", name, truth)
    written(tmp_path / "pred", "a", {k: v for k, v in pred.items() if not k.startswith("dist")})
    written(tmp_path / "pred", "b", pred)
    with pytest.raises(ValueError, match=r"b\.npz answers other tasks than a\.npz"):
        arctic.score(tmp_path / "pred", tmp_path / "truth", strict=False)
    truth["object_vertices"][3] = np.nan  # frame 3 is not valid
    pred["object_vertices"] = pred["object_vertices"] * 1000
    paths = written(tmp_path, "p", pred), written(tmp_path, "t", truth)
    with pytest.raises(ValueError, match="object_vertices look like millimetres"):
        arctic.score(*paths, strict=False)
    truth["diameter_m"] = np.array([300.0])
    with pytest.raises(ValueError, match="diameter_m is 300, expected metres"):
        arctic.score(paths[0], written(tmp_path, "t", truth), strict=False)


def test_a_prediction_may_be_nan_where_the_frame_is_not_scored(tmp_path: Path) -> None:
    pred, truth = sequence(7)
    pred["joints_right"][1] = np.nan  # right_valid is 0 there
    paths = written(tmp_path, "p", pred), written(tmp_path, "t", truth)
    assert arctic.score(*paths, strict=False).num_samples == FRAMES
