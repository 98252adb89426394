import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from tests.reference import arctic as reference
from train.evaluate.metrics.arctic import (
    ArcticAccumulator,
    ArcticField,
    ArcticPose,
    ArcticTruth,
    field_of,
    score_field,
    score_pose,
)

Arrays = dict[str, np.ndarray]
POSE_KEYS = (
    "aae", "mpjpe/ra/h", "mrrpe/r/l", "mrrpe/r/o", "cdev/ho", "mdev/h", "success_rate/0.05",
    "acc/h", "acc/o",
)  # fmt: skip
FIELD_KEYS = ("avg/ho", "avg/oh", "acc/ho", "acc/oh")
VALIDITIES = ("is_valid", "right_valid", "left_valid")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A sequence: two hands near a moving object, three hand vertices that hold on to it."""

    true: Arrays
    pred: Arrays
    valid: Arrays
    part_ids: np.ndarray
    diameter_m: float = 0.25

    def truth(self) -> ArcticTruth:
        return ArcticTruth(
            pose=_pose(self.true),
            **{name: torch.from_numpy(self.valid[name]) for name in VALIDITIES},
            part_ids=torch.from_numpy(self.part_ids),
            diameter_m=self.diameter_m,
        )


def _pose(arrays: Arrays) -> ArcticPose:
    return ArcticPose(**{name: torch.from_numpy(value) for name, value in arrays.items()})


def _scene(num_frames: int = 19, num_vertices: int = 12, seed: int = 0) -> Scene:
    rng = np.random.default_rng(seed)
    path = rng.normal(0, 0.01, (num_frames, 1, 3)).cumsum(0) + np.array([0, 0, 0.8])
    shape = rng.normal(0, 0.08, (num_vertices, 3))
    true = {"object_vertices": shape + path, "arti_rad": rng.uniform(0, 3, num_frames)}
    for side, x in (("right", 0.1), ("left", -0.1)):
        hand = rng.normal([x, 0, 0], 0.04, (799, 3)) + path
        hand = hand + rng.normal(0, 0.002, hand.shape)
        true[f"joints_{side}"], true[f"vertices_{side}"] = hand[:, :21].copy(), hand[:, 21:].copy()
    for side, vertex, frames in (
        ("right", 11, slice(1, 18)),
        ("right", 700, slice(0, 15)),
        ("left", 42, slice(2, 19)),  # open at the last frame of 19
    ):
        held = true["object_vertices"][frames, vertex % num_vertices]
        true[f"vertices_{side}"][frames, vertex] = held + 0.0005
    pred = {name: value + rng.normal(0, 0.008, value.shape) for name, value in true.items()}
    valid = {name: np.ones(num_frames) for name in VALIDITIES}
    return Scene(
        true=true,
        pred=pred,
        valid=valid,
        part_ids=np.arange(num_vertices) % 2 + 1,
    )


@cache
def _partly_valid() -> Scene:
    """Frames and hands that are not valid, or a fraction of it; predictions are NaN where 0."""
    scene = _scene()
    scene.valid["is_valid"][[3, 10]] = 0, 0.6
    scene.valid["right_valid"][[7, 15]] = 0.25, 0
    scene.valid["left_valid"][[5, 15]] = 0.5, 0
    _blank(scene.pred, scene.valid)
    return scene


def _blank(arrays: Arrays, valid: Arrays) -> None:
    for name, value in arrays.items():
        weight = valid["is_valid"].copy()
        for side in ("right", "left"):
            if name.endswith(side):
                weight *= valid[f"{side}_valid"]
        value[weight == 0] = np.nan


def _pair(arrays: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    return arrays[f"{name}_right"], arrays[f"{name}_left"]


def _expected_pose(scene: Scene, *, strict: bool = False) -> Arrays:
    true, pred, parts = scene.true, scene.pred, scene.part_ids
    whole, right, left = (scene.valid[name] for name in VALIDITIES)
    true_object, pred_object = true["object_vertices"], pred["object_vertices"]
    true_joints, pred_joints = _pair(true, "joints"), _pair(pred, "joints")
    true_hands, pred_hands = _pair(true, "vertices"), _pair(pred, "vertices")
    touch = true_hands, true_object, pred_hands, pred_object, (right, left), whole
    acc_h, acc_o = reference.acc_pose(
        true_joints, true_hands, true_object, pred_joints, pred_hands, pred_object, parts,
        (right, left), whole, strict=strict,
    )  # fmt: skip
    return {
        "aae": reference.aae(true["arti_rad"], pred["arti_rad"], whole, strict=strict),
        "mpjpe/ra/h": reference.mpjpe_ra(true_joints, pred_joints, (right, left), whole),
        "mrrpe/r/l": reference.mrrpe_rl(true_joints, pred_joints, (right, left), whole),
        "mrrpe/r/o": reference.mrrpe_ro(
            true_joints[0], pred_joints[0], true_object, pred_object, parts, right, whole
        ),
        "cdev/ho": reference.cdev(*touch, strict=strict),
        "mdev/h": reference.mdev(*touch, strict=strict),
        "success_rate/0.05": reference.success_rate(
            true_object, pred_object, parts, scene.diameter_m, whole
        ),
        "acc/h": acc_h,
        "acc/o": acc_o,
    }


def _expected_field(scene: Scene, pred: ArcticField, *, strict: bool = False) -> Arrays:
    true = scene.true
    whole, right_valid, left_valid = (scene.valid[name] for name in VALIDITIES)
    (right, left), surface = _pair(true, "vertices"), true["object_vertices"]
    fields = (
        (reference.nearest(right, surface)[0], reference.nearest(left, surface)[0]),
        (reference.nearest(surface, right)[0], reference.nearest(surface, left)[0]),
        (pred.right_to_object.numpy(), pred.left_to_object.numpy()),
        (pred.object_to_right.numpy(), pred.object_to_left.numpy()),
    )
    avg_ho, avg_oh = reference.avg_field(*fields, whole)
    valid = right_valid, left_valid
    acc_ho, acc_oh = reference.acc_field(*fields, valid, whole, strict=strict)
    return {"avg/ho": avg_ho, "avg/oh": avg_oh, "acc/ho": acc_ho, "acc/oh": acc_oh}


def _noisy_field(scene: Scene, seed: int = 0) -> ArcticField:
    """Predicted distances, some over the cut of the truth."""
    rng = np.random.default_rng(seed)
    num_frames, num_vertices = scene.true["object_vertices"].shape[:2]

    def distances(num: int) -> Tensor:
        return torch.from_numpy(rng.uniform(0, 0.15, (num_frames, num)))

    return ArcticField(
        right_to_object=distances(778),
        left_to_object=distances(778),
        object_to_right=distances(num_vertices),
        object_to_left=distances(num_vertices),
    )


def _assert_matches(actual: dict[str, Tensor], expected: Arrays) -> None:
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name].dtype == torch.float64, name
        np.testing.assert_allclose(actual[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


def _assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, values in expected.items():
        assert torch.equal(actual[name].nan_to_num(-1), values.nan_to_num(-1)), name


@pytest.mark.parametrize("strict", [False, True])
def test_pose_scores_match_the_loops(*, strict: bool) -> None:
    scene = _partly_valid()
    actual = score_pose(_pose(scene.pred), scene.truth(), strict=strict)
    assert tuple(sorted(actual)) == tuple(sorted(POSE_KEYS))
    _assert_matches(actual, _expected_pose(scene, strict=strict))
    assert len(actual["mdev/h"]) == (3 if strict else 2)
    assert 0 < float(actual["success_rate/0.05"].nanmean()) < 100


@pytest.mark.parametrize("strict", [False, True])
def test_field_scores_match_the_loops(*, strict: bool) -> None:
    scene = _partly_valid()
    pred = _noisy_field(scene)
    pred.right_to_object[3], pred.object_to_left[3] = math.nan, math.nan  # a frame not valid
    actual = score_field(pred, scene.truth(), strict=strict)
    assert tuple(sorted(actual)) == tuple(sorted(FIELD_KEYS))
    _assert_matches(actual, _expected_field(scene, pred, strict=strict))


def test_float32_inputs_are_scored_in_float64() -> None:
    scene = _scene(num_frames=4)
    for arrays in (scene.true, scene.pred, scene.valid):
        arrays.update({name: value.astype(np.float32) for name, value in arrays.items()})
    actual = score_pose(_pose(scene.pred), scene.truth())
    for arrays in (scene.true, scene.pred):
        arrays.update({name: value.astype(np.float64) for name, value in arrays.items()})
    _assert_matches(actual, _expected_pose(scene))


def test_a_known_field_changes_nothing() -> None:
    scene = _partly_valid()
    truth, pose, distances = scene.truth(), _pose(scene.pred), _noisy_field(scene)
    field = field_of(truth.pose)
    _assert_same(score_pose(pose, truth, field=field), score_pose(pose, truth))
    _assert_same(score_field(distances, truth, field=field), score_field(distances, truth))


def test_a_perfect_prediction() -> None:
    scene = _scene()
    truth = scene.truth()
    scores = ArcticAccumulator()
    scores.update(score_pose(truth.pose, truth))
    scores.update(score_field(field_of(truth.pose)[0], truth))
    actual = scores.summary()
    gap_mm = 0.5 * math.sqrt(3)  # the vertices that touch are that far from theirs in truth
    assert actual.pop("success_rate/0.05") == 100
    assert actual.pop("cdev/ho") == pytest.approx(gap_mm, rel=0.5)
    assert actual == pytest.approx(dict.fromkeys(actual, 0.0), abs=1e-9)


@pytest.mark.parametrize(
    ("pred_deg", "true_deg", "by_default", "strict"),
    [(359, 1, 358, 2), (1, 359, 358, 2), (30, 50, 20, 20), (720, 0, 720, 0), (-170, 180, 350, 10)],
)
def test_articulation_near_the_wrap(
    pred_deg: float, true_deg: float, by_default: float, strict: float
) -> None:
    scene = _scene(num_frames=1)
    scene.pred["arti_rad"][:] = math.radians(pred_deg)
    scene.true["arti_rad"][:] = math.radians(true_deg)
    for is_strict, expected in ((False, by_default), (True, strict)):
        actual = score_pose(_pose(scene.pred), scene.truth(), strict=is_strict)["aae"]
        assert actual.tolist() == pytest.approx([expected], abs=1e-9)


def test_a_fraction_of_validity_by_hand() -> None:
    """Half a right hand in frame 2 of 5: valid for joints, invalid for contact unless strict."""
    scene = _scene(num_frames=5)
    scene.valid["right_valid"][2] = 0.5
    scene.valid["left_valid"][:] = 0
    for strict in (False, True):
        actual = score_pose(_pose(scene.pred), scene.truth(), strict=strict)
        assert actual["mpjpe/ra/h"].isfinite().all()
        assert actual["mrrpe/r/o"].isfinite().all()
        assert actual["mrrpe/r/l"].isnan().all()
        assert actual["acc/o"].isfinite().tolist() == [False, True, True, True, False]
        assert actual["acc/h"].isfinite().tolist() == [False, strict, strict, strict, False]
        assert actual["cdev/ho"].isfinite().tolist() == [True, True, strict, True, True]


def test_frames_that_are_not_valid_have_no_score() -> None:
    scene = _scene(num_frames=4)
    scene.valid["is_valid"][:] = 0
    _blank(scene.pred, scene.valid)
    scores = ArcticAccumulator()
    scores.update(score_pose(_pose(scene.pred), scene.truth()))
    scores.update(score_field(_noisy_field(scene), scene.truth()))
    assert scores.summary() == dict.fromkeys((*POSE_KEYS, *FIELD_KEYS))


def test_a_truth_may_be_nan_where_it_is_not_valid() -> None:
    scene = _scene(num_frames=6)
    scene.valid["is_valid"][2] = 0
    expected = score_field(_noisy_field(scene), scene.truth())
    _blank(scene.true, scene.valid)
    _assert_same(score_field(_noisy_field(scene), scene.truth()), expected)

    scene.valid["left_valid"][4] = 0
    expected = score_pose(_pose(scene.pred), scene.truth())
    _blank(scene.true, scene.valid)
    _assert_same(score_pose(_pose(scene.pred), scene.truth()), expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_short_sequences_match_the_loops(num_frames: int, *, strict: bool) -> None:
    scene = _scene(num_frames=num_frames)
    actual = score_pose(_pose(scene.pred), scene.truth(), strict=strict)
    _assert_matches(actual, _expected_pose(scene, strict=strict))
    assert actual["mdev/h"].shape == (0,)
    assert actual["acc/h"].isnan().sum() == min(num_frames, 2)
    field = score_field(_noisy_field(scene), scene.truth(), strict=strict)
    _assert_matches(field, _expected_field(scene, _noisy_field(scene), strict=strict))
    scores = ArcticAccumulator()
    scores.update(actual)
    assert scores.summary()["mdev/h"] is None


def test_values_of_all_sequences_count_the_same() -> None:
    scores = ArcticAccumulator()
    values: dict[str, list[np.ndarray]] = {}
    # Other numbers of frames and of object vertices.
    for scene in (_partly_valid(), _scene(num_frames=3, num_vertices=7), _scene(4, 30, seed=1)):
        truth = scene.truth()
        poses = score_pose(_pose(scene.pred), truth)
        for some in (poses, score_field(_noisy_field(scene), truth)):
            scores.update(some)
            for name, value in some.items():
                values.setdefault(name, []).append(value.numpy())
    actual = scores.summary()
    assert set(actual) == {*POSE_KEYS, *FIELD_KEYS}
    for name, parts in values.items():
        assert actual[name] == pytest.approx(np.nanmean(np.concatenate(parts))), name


def test_no_sequence_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="no ARCTIC sequence was scored"):
        ArcticAccumulator().summary()


@pytest.mark.parametrize(
    ("name", "frame", "how_many"),
    [
        ("joints_right", 1, 18),
        ("vertices_left", 2, 18),
        ("object_vertices", 4, 18),
        ("arti_rad", 0, 18),
    ],
)
def test_a_missing_value_is_an_error_and_not_a_better_score(
    name: str, frame: int, how_many: int
) -> None:
    for kind in ("predicted", "true"):
        scene = _scene()
        scene.valid["is_valid"][6] = 0
        arrays = scene.pred if kind == "predicted" else scene.true
        arrays[name][6] = math.nan  # allowed
        score_pose(_pose(scene.pred), scene.truth())
        arrays[name][frame] = math.nan
        match = f"^{kind} {name}: 1 of {how_many} scored frames are not finite"
        with pytest.raises(ValueError, match=match):
            score_pose(_pose(scene.pred), scene.truth())


def test_a_missing_distance_is_an_error() -> None:
    scene = _scene(num_frames=5)
    for name in ("right_to_object", "object_to_left"):
        pred = _noisy_field(scene)
        getattr(pred, name)[2, 1] = math.inf
        with pytest.raises(ValueError, match=f"predicted {name}: 1 of 5 scored frames are not fin"):
            score_field(pred, scene.truth())
    scene.true["vertices_left"][2] = math.nan
    scene.valid["left_valid"][2] = 0
    with pytest.raises(ValueError, match="true left_to_object: 1 of 5 scored frames are not fin"):
        score_field(_noisy_field(scene), scene.truth())


def test_the_spread_of_contacts_is_measured_in_the_first_frame() -> None:
    """Two object vertices that touch in frame 0 only: a hand that changes over has a window."""
    scene = _scene(num_frames=20)
    true = scene.true
    true["object_vertices"][0, 5] = true["object_vertices"][0, 2] + 0.001
    for vertex, frames in ((2, slice(1, 10)), (5, slice(10, 19))):
        true["vertices_right"][frames, 300] = true["object_vertices"][frames, vertex] + 0.0005
    actual = score_pose(_pose(scene.pred), scene.truth())
    _assert_matches(actual, _expected_pose(scene))
    assert len(actual["mdev/h"]) == 4  # with the three of every scene


def test_the_first_frame_of_the_object_is_needed() -> None:
    """The spread of contacts is measured there."""
    scene = _scene(num_frames=3)
    scene.valid["is_valid"][0] = 0
    scene.true["object_vertices"][0] = math.nan
    with pytest.raises(ValueError, match="true object_vertices: 1 of 1 scored first frames"):
        score_pose(_pose(scene.pred), scene.truth())


def test_other_sequences_are_refused() -> None:
    scene, longer, bigger = _scene(3), _scene(4), _scene(3, num_vertices=20)
    truth = scene.truth()
    for other, got in ((longer, "4 of 12"), (bigger, "3 of 20")):
        match = f"must have 3 frames of 12 object vertices like the truth, got {got}"
        with pytest.raises(ValueError, match=rf"^pred\.object_vertices {match}"):
            score_pose(_pose(other.pred), truth)
        with pytest.raises(ValueError, match=rf"^pred\.object_to_right {match}"):
            score_field(_noisy_field(other), truth)
        field = field_of(other.truth().pose)
        with pytest.raises(ValueError, match=rf"^field\.object_to_right {match}"):
            score_pose(_pose(scene.pred), truth, field=field)
        with pytest.raises(ValueError, match=rf"^field\.object_to_right {match}"):
            score_field(_noisy_field(scene), truth, field=field)


# Where annotations are checked, they refuse a wrong shape first.
REFUSED = (ValueError, TypeCheckError)


def test_parts_of_different_length_are_refused() -> None:
    scene = _scene(3)
    with pytest.raises(REFUSED, match=r"need the same frames, got .*'arti_rad': 1|Type-check"):
        _pose(scene.pred | {"arti_rad": np.zeros(1)})
    with pytest.raises(REFUSED, match=r"the same frames, got .*'object_to_left': 2|Type-check"):
        replace(_noisy_field(scene), object_to_left=torch.zeros(2, 12))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("left_valid", torch.ones(4), r"left_valid must have shape \(3,\) .*, got \(4,\)"),
        ("is_valid", torch.tensor([0, 1, 1.5]), r"is_valid must lie in \[0, 1\]"),
        ("left_valid", torch.tensor([0, 1, -0.1]), r"left_valid must lie in \[0, 1\]"),
        ("right_valid", torch.tensor([0, 1, math.nan]), r"right_valid must lie in \[0, 1\]"),
        ("part_ids", torch.ones(5).long(), r"part_ids must have shape \(12,\) .*, got \(5,\)"),
        ("part_ids", torch.ones(12).long(), r"part_ids has no vertex of the bottom part \(2\)"),
        ("diameter_m", 0.0, r"diameter_m must be positive and finite, got 0\.0"),
        ("diameter_m", math.nan, r"diameter_m must be positive and finite, got nan"),
    ],
)
def test_wrong_truths_are_refused(name: str, value: Any, match: str) -> None:
    truth = _scene(3).truth()
    with pytest.raises(REFUSED, match=f"^ARCTIC truth: {match}|Type-check"):
        replace(truth, **{name: value})


def test_a_sequence_without_a_frame_is_refused() -> None:
    scene = _scene(3)
    for arrays in (scene.true, scene.valid):
        arrays.update({name: value[:0] for name, value in arrays.items()})
    with pytest.raises(ValueError, match=r"^ARCTIC truth: the sequence has no frame"):
        scene.truth()
