"""World-space files: segments, cameras, and what can be wrong with them."""

from pathlib import Path

import numpy as np
import pytest

from tests.reference import world as loops
from tests.train.evaluate.protocols.hands import save_npz
from train.evaluate.protocols import world

Arrays = dict[str, np.ndarray]
LENGTHS = (7, 103, 3)


def motion(seed: int) -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(seed)
    num = sum(LENGTHS)
    path = np.cumsum(rng.normal(0, 0.01, (num, 3)), 0)
    hand = rng.normal(0, 0.04, (num, 21, 3))
    camera = np.cumsum(rng.normal(0, 0.02, (40, 3)), 0)
    truth: Arrays = {
        "joints": hand + path[:, None],
        "root": path,
        "segment": np.repeat([4, 9, 2], LENGTHS),
        "camera_position": camera,
        "camera_segment": np.repeat([0, 1], 20),
    }
    pred: Arrays = {
        "joints": truth["joints"] * 1.1 + rng.normal(0, 0.004, hand.shape) + 0.3,
        "root": path + rng.normal(0, 0.004, path.shape) + 0.3,
        "camera_position": camera * 0.8 + rng.normal(0, 0.004, camera.shape),
    }
    return pred, truth


def score(folder: Path, pred: Arrays, truth: Arrays, *, strict: bool = False) -> dict[str, float]:
    for name, arrays in (("pred", pred), ("truth", truth)):
        save_npz(folder / f"{name}.npz", arrays)
    report = world.score(folder / "pred.npz", folder / "truth.npz", strict=strict)
    return {**report.scores}


@pytest.mark.parametrize("strict", [False, True])
def test_scores_are_those_of_the_loops(tmp_path: Path, *, strict: bool) -> None:
    pred, truth = motion(0)
    found = score(tmp_path, pred, truth, strict=strict)
    edges = np.cumsum(LENGTHS)[:-1]
    parts = [
        np.split(arrays[name], edges) for name in ("joints", "root") for arrays in (pred, truth)
    ]
    frames: dict[str, list[float]] = {}
    for joints, target, root, target_root in zip(*parts, strict=True):
        values = loops.score_segment(joints, target, root, target_root, strict=strict)
        for name, value in values.items():
            frames.setdefault(name, []).extend(value)
    for name, value in frames.items():
        assert found[name] == pytest.approx(np.mean(value), rel=1e-9), name
    trajectories = [
        loops.ate(pred["camera_position"][part], truth["camera_position"][part])
        for part in (slice(0, 20), slice(20, 40))
    ]
    ate, ate_s = np.mean(trajectories, 0)
    assert (found["ate_mm"], found["ate_s_mm"]) == pytest.approx((ate, ate_s), rel=1e-9)
    assert (found["num_segments"], found["num_trajectories"]) == (3, 2)


def test_a_prediction_may_carry_its_own_segments_and_cameras_may_be_absent(tmp_path: Path) -> None:
    pred, truth = motion(1)
    expected = score(tmp_path, pred, truth)
    hands = {k: v for k, v in truth.items() if not k.startswith("camera")}
    found = score(
        tmp_path,
        {"joints": pred["joints"], "root": pred["root"], "segment": truth["segment"]},
        hands,
    )
    assert found["w_mpjpe_mm"] == expected["w_mpjpe_mm"]
    assert found["ate_mm"] is None


def test_the_rules_of_hawor_are_named_and_switched(tmp_path: Path) -> None:
    pred, truth = motion(5)
    truth["is_right"] = np.repeat([1, 1, 0], LENGTHS)
    for name, arrays in (("pred", pred), ("truth", truth)):
        save_npz(tmp_path / f"{name}.npz", arrays)
    paths = tmp_path / "pred.npz", tmp_path / "truth.npz"
    default = world.score(*paths, strict=False)
    said = "Scored: hands of both sides in tracks of at least 1 frames; 0 of 3 tracks left out."
    assert said in default.definition
    assert "min_track=16 right_only=true" in default.quirks[-1]
    right = world.score(*paths, strict=False, rules=world.Rules(right_only=True))
    assert right.scores["num_frames"] == sum(LENGTHS[:2])
    hawor = world.score(*paths, strict=False, rules=world.HAWOR)
    assert (hawor.scores["num_segments"], hawor.scores["num_left_out"]) == (1, 2)
    assert hawor.scores["rules"] == {"min_track": 16, "right_only": True}
    assert "min_track" not in " ".join(hawor.quirks)

    rows = slice(LENGTHS[0], sum(LENGTHS[:2]))
    alone = {k: v[rows] for k, v in truth.items() if not k.startswith("camera")}
    mine = {k: v[rows] for k, v in pred.items() if not k.startswith("camera")}
    assert score(tmp_path, mine, alone)["w_mpjpe_mm"] == hawor.scores["w_mpjpe_mm"]


@pytest.mark.parametrize(
    ("sides", "rules", "expected"),
    [
        (None, world.HAWOR, r"right_only=true needs is_right \[f\]"),
        (np.arange(113) % 2, world.HAWOR, "expected 0 or 1, the same in a whole segment"),
        (np.zeros(113), world.HAWOR, r"leave none of 3 tracks; the longest has 103 frames"),
        (None, world.Rules(min_track=104), r"leave none of 3 tracks"),
    ],
)
def test_rules_that_cannot_be_followed_are_one_sentence(
    tmp_path: Path, sides: np.ndarray | None, rules: world.Rules, expected: str
) -> None:
    pred, truth = motion(6)
    save_npz(tmp_path / "pred.npz", pred)
    save_npz(tmp_path / "truth.npz", truth if sides is None else {**truth, "is_right": sides})
    with pytest.raises(ValueError, match=expected):
        world.score(tmp_path / "pred.npz", tmp_path / "truth.npz", strict=False, rules=rules)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"root": None}, "no 'root'"),
        ({"joints": np.zeros((5, 21, 3))}, r"'root' has shape \(113, 3\), expected \(5, 3\)"),
        ({"joints": np.zeros((113, 20, 3))}, "hold 20 joints a hand, the truth 21"),
        ({"root": np.full((113, 3), np.inf)}, "root: 113 of 113 samples hold NaN"),
        ({"camera_position": None}, "camera_position and camera_segment are needed in the truth"),
        ({"camera_position": np.zeros((3, 3))}, "hold 3 rows of camera_position"),
    ],
)
def test_a_broken_prediction_is_one_sentence(
    tmp_path: Path, change: dict[str, np.ndarray | None], expected: str
) -> None:
    pred, truth = motion(2)
    arrays = {k: v for k, v in {**pred, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=expected):
        score(tmp_path, arrays, truth)


def test_millimetres_and_torn_segments_are_refused(tmp_path: Path) -> None:
    pred, truth = motion(3)
    with pytest.raises(ValueError, match="look like millimetres"):
        score(tmp_path, {**pred, "joints": pred["joints"] * 1000}, truth)
    truth["segment"][0] = 9
    with pytest.raises(ValueError, match="segment: the frames of a segment must stand together"):
        score(tmp_path, pred, truth)


def test_the_other_units_and_conventions_are_noticed(tmp_path: Path) -> None:
    pred, truth = motion(4)
    for name in ("root", "camera_position"):
        with pytest.raises(ValueError, match=f"predicted {name} look like millimetres"):
            score(tmp_path, {**pred, name: pred[name] * 1000}, truth)
    mirrored = {**pred, "joints": truth["joints"] * [-1, 1, 1]}
    coincident = {**pred, "joints": pred["joints"][:, :1].repeat(21, 1)}
    for arrays, expected in (
        (mirrored, "look mirrored"),
        (coincident, "113 of 113 frames coincid"),
    ):
        score(tmp_path, arrays, truth)
        report = world.score(tmp_path / "pred.npz", tmp_path / "truth.npz", strict=False)
        assert any(expected in warning for warning in report.warnings)
