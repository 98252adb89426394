import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from model.geometry.rotation import axis_angle_to_rotmat, rotate
from tests.reference import points, world
from tests.strategies import rotvecs
from train.evaluate.metrics.world import WorldAccumulator, WorldScores, rigidly_moved, similarity

LISTS = ("w_mpjpe_mm", "wa_mpjpe_mm", "pa_mpjpe_mm", "accel_m_s2", "rte_percent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    joints: np.ndarray
    target: np.ndarray
    root: np.ndarray
    target_root: np.ndarray

    def tensors(self) -> list[Tensor]:
        return [
            torch.from_numpy(x) for x in (self.joints, self.target, self.root, self.target_root)
        ]


def _segment(num_frames: int, seed: int = 0, num_joints: int = 5) -> Segment:
    """A hand on a random walk, and a prediction that drifts, trembles and has a wrong scale."""
    rng = np.random.default_rng(seed)
    target_root = rng.normal(0, 0.01, (num_frames, 3)).cumsum(0)
    target = rng.normal(0, 0.04, (num_frames, num_joints, 3)) + target_root[:, None]
    drift = rng.normal(0, 0.002, (num_frames, 3)).cumsum(0) + np.array([0.3, 0, 1])
    joints = 1.2 * target[..., [1, 2, 0]] + drift[:, None] + rng.normal(0, 0.01, target.shape)
    root = target_root[:, [1, 2, 0]] + drift
    return Segment(joints=joints, target=target, root=root, target_root=target_root)


def _score(*segments: Segment, strict: bool = False) -> WorldScores:
    scores = WorldAccumulator(strict=strict)
    for segment in segments:
        scores.update(*segment.tensors())
    return scores.summary()


def _assert_matches(scores: WorldScores, *segments: Segment, strict: bool = False) -> None:
    """Compare with the mean over the values of all segments together."""
    values: dict[str, list[float]] = {name: [] for name in LISTS}
    for segment in segments:
        one = world.score_segment(
            segment.joints, segment.target, segment.root, segment.target_root, strict=strict
        )
        for name in LISTS:
            values[name] += one[name]
    for name in LISTS:
        actual = getattr(scores, name)
        assert (actual is None) == (not values[name]), name
        if actual is not None:
            expected = points.average(values[name])
            # Inf or NaN: x / 0 depends on the rounding of x.
            assert math.isfinite(actual) == math.isfinite(expected), name
            assert not math.isfinite(actual) or actual == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 100, 101, 230])
def test_segments_match_the_loops(num_frames: int, *, strict: bool) -> None:
    segment = _segment(num_frames, num_joints=3 if num_frames > 9 else 21)
    scores = _score(segment, strict=strict)
    _assert_matches(scores, segment, strict=strict)
    assert scores.num_segments == 1
    assert scores.num_frames == num_frames
    assert (scores.accel_m_s2 is None) == (num_frames < (3 if strict else 5))


@pytest.mark.parametrize("strict", [False, True])
def test_frames_of_all_segments_count_the_same(*, strict: bool) -> None:
    segments = [_segment(n, seed=n) for n in (4, 7, 30)]
    scores = _score(*segments, strict=strict)
    _assert_matches(scores, *segments, strict=strict)
    assert scores.num_frames == 41
    assert scores.ate_mm is scores.ate_s_mm is None
    assert scores.num_trajectories == 0


def test_float32_inputs_are_scored_in_float64() -> None:
    segment = _segment(12)
    scores = WorldAccumulator()
    single = [x.float() for x in segment.tensors()]
    scores.update(*single)
    joints, target, root, target_root = (x.double().numpy() for x in single)
    rounded = Segment(joints=joints, target=target, root=root, target_root=target_root)
    _assert_matches(scores.summary(), rounded)


def test_a_chunk_is_moved_by_its_own_first_two_frames() -> None:
    """A turn and a scale that change at frame 100 cost nothing; at frame 50 they do."""
    for change, is_free in ((100, True), (50, False)):
        target = _segment(120).target
        joints = 2 * target[..., [1, 2, 0]] + 3
        joints[change:] = 0.5 * target[change:][..., [2, 0, 1]] - 1
        root = np.zeros((120, 3))
        scores = _score(Segment(joints=joints, target=target, root=root, target_root=root + 0))
        assert (scores.w_mpjpe_mm < 1e-9) == is_free
        assert (scores.wa_mpjpe_mm < 1e-9) == is_free
        assert scores.pa_mpjpe_mm < 1e-9


@settings(max_examples=15)
@given(rotvecs())
def test_scores_ignore_a_similarity_but_not_a_mirror(aa: Tensor) -> None:
    segment = _segment(20)
    joints, target, root, target_root = segment.tensors()
    expected = _score(segment)
    moved = 0.3 * rotate(axis_angle_to_rotmat(aa), joints) + torch.tensor([1.0, -3, 0.2])
    turned_root = rotate(axis_angle_to_rotmat(aa), root) - 2
    for sign in (1.0, -1.0):
        scores = WorldAccumulator()
        scores.update(moved * torch.tensor([sign, 1, 1]), target, turned_root, target_root)
        actual = scores.summary()
        for name in ("w_mpjpe_mm", "wa_mpjpe_mm", "pa_mpjpe_mm"):
            same = getattr(actual, name) == pytest.approx(getattr(expected, name), rel=1e-6)
            assert same == (sign > 0), name
        assert actual.rte_percent == pytest.approx(expected.rte_percent, rel=1e-6)
    assert actual.accel_m_s2 != pytest.approx(expected.accel_m_s2, rel=1e-3)


def test_acceleration_by_hand() -> None:
    """A jump of 1 mm in frame 3 of 7: accelerations of 0.9, -1.8, 0.9 m/s^2 in frames 2 to 4."""
    still = np.zeros((7, 2, 3))
    jump = still.copy()
    jump[3, :, 1] = 0.001
    root = np.zeros((7, 3))
    segment = Segment(joints=jump, target=still, root=root, target_root=root + 0)
    assert _score(segment).accel_m_s2 == pytest.approx((0.9 + 1.8 + 0.9) / 3)
    assert _score(segment, strict=True).accel_m_s2 == pytest.approx((0 + 0.9 + 1.8 + 0.9 + 0) / 5)


def test_root_error_by_hand() -> None:
    """One frame of three is off by 3 cm; the rigid fit shares it: 1, 1 and 2 cm of a 2 m path."""
    target_root = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    root = target_root + np.array([[5, 0, 0], [5, 0, 0], [5.03, 0, 0]])
    joints = _segment(3).joints
    segment = Segment(joints=joints, target=joints, root=root, target_root=target_root)
    assert _score(segment).rte_percent == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_a_still_root_divides_by_zero_or_is_left_out() -> None:
    moving, still = _segment(6, seed=1), _segment(8, seed=2)
    still.target_root[:] = [0.5, 0.25, 1]
    scores = _score(moving, still)
    assert scores.rte_percent == math.inf
    assert scores.num_still == 1
    scores = _score(moving, still, strict=True)
    _assert_matches(scores, moving, still, strict=True)
    assert scores.rte_percent == pytest.approx(_score(moving).rte_percent)
    assert scores.num_still == 1

    still.root[:] = [-1, 0.5, 0]
    rte_percent = _score(still).rte_percent
    assert rte_percent is not None
    assert math.isnan(rte_percent)
    assert _score(still, strict=True).rte_percent is None


def test_coincident_points_have_no_scale_or_scale_zero() -> None:
    segment = _segment(4, num_joints=4)
    segment.joints[1] = [0.5, 0.1, 0.3]  # 0.1 is not exact in binary: its mean is off by rounding
    scores = _score(segment)
    assert math.isnan(scores.pa_mpjpe_mm)
    assert math.isfinite(scores.w_mpjpe_mm)
    scores = _score(segment, strict=True)
    _assert_matches(scores, segment, strict=True)
    assert scores.pa_mpjpe_mm < 100

    segment.joints[:] = [0.7, 0.1, 0.3]
    scores = _score(segment)
    assert math.isnan(scores.w_mpjpe_mm)
    assert math.isnan(scores.wa_mpjpe_mm)
    _assert_matches(_score(segment, strict=True), segment, strict=True)


def test_the_fit_of_coincident_points() -> None:
    source = torch.tensor([0.7, 0.1, 0.3]).expand(2, 5, 3)
    target = torch.from_numpy(_segment(2).target)
    scale, _, t = similarity(source, target)
    assert scale.isnan().all()
    assert t.isnan().all()
    scale, _, t = similarity(source, target, strict=True)
    assert scale.tolist() == [0, 0]
    torch.testing.assert_close(t, target.mean(1))


def test_camera_errors_match_the_loops() -> None:
    scores = WorldAccumulator()
    scores.update(*_segment(6).tensors())
    expected = []
    for seed, num in enumerate((5, 40)):
        segment = _segment(num, seed=seed)
        position = 1.1 * segment.root
        scores.update_camera(torch.from_numpy(position), torch.from_numpy(segment.target_root))
        expected.append(world.ate(position, segment.target_root))
    actual = scores.summary()
    ate_mm, ate_s_mm = np.mean(expected, 0)
    assert actual.ate_mm == pytest.approx(ate_mm)
    assert actual.ate_s_mm == pytest.approx(ate_s_mm)
    assert ate_s_mm > ate_mm
    assert actual.num_trajectories == 2
    assert actual.num_segments == 1


def test_a_wrong_scale_costs_the_rigid_camera_error_only() -> None:
    target = torch.tensor([[-1.0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0]])
    scores = WorldAccumulator()
    scores.update(*_segment(3).tensors())
    scores.update_camera(1.5 * target[:, [1, 2, 0]] + 4, target)
    actual = scores.summary()
    assert actual.ate_mm == pytest.approx(0, abs=1e-4)  # float32 inputs
    assert actual.ate_s_mm == pytest.approx(500, abs=1e-3)


def test_a_camera_predicted_to_stand_still() -> None:
    target = torch.from_numpy(_segment(9).target_root)
    position = torch.tensor([0.1, 0.2, 0.7]).expand(9, 3)
    for strict in (False, True):
        scores = WorldAccumulator(strict=strict)
        scores.update(*_segment(3).tensors())
        scores.update_camera(position, target)
        actual = scores.summary()
        expected = 1000 * float((target - target.mean(0)).square().sum(1).mean().sqrt())
        assert actual.ate_s_mm == pytest.approx(expected)
        if strict:
            assert actual.ate_mm == pytest.approx(expected)
        else:
            assert actual.ate_mm is not None
            assert math.isnan(actual.ate_mm)


def test_fits_never_mirror() -> None:
    source = torch.from_numpy(_segment(1).joints[0])
    mirrored = source * torch.tensor([-1.0, 1, 1])
    _, R, _ = similarity(source, mirrored)
    assert float(torch.linalg.det(R)) == pytest.approx(1)
    assert float((rigidly_moved(source, mirrored) - mirrored).norm()) > 0.005


def test_nothing_to_score_is_a_clear_error() -> None:
    scores = WorldAccumulator()
    scores.update_camera(torch.rand(4, 3), torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"no segment was scored: add at least one"):
        scores.summary()
    empty = torch.zeros(0, 3)
    with pytest.raises(ValueError, match="at least one frame and a root for each, got 0 frames"):
        scores.update(torch.zeros(0, 5, 3), torch.zeros(0, 5, 3), empty, empty)
    with pytest.raises(ValueError, match="trajectory needs at least one frame, got none"):
        scores.update_camera(empty, empty)


def test_parts_that_do_not_pair_up_are_refused() -> None:
    scores = WorldAccumulator()
    joints, target, root, target_root = _segment(4).tensors()
    with pytest.raises(ValueError, match=r"got \(4, 5, 3\) and \(3, 5, 3\)"):
        scores.update(joints, target[:3], root, target_root)
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(1, 3\)"):
        scores.update(joints, target, root, target_root[:1])
    with pytest.raises(ValueError, match=r"got 4 frames and 3 roots"):
        scores.update(joints, target, root[:3], target_root[:3])
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(2, 3\)"):
        scores.update_camera(root, target_root[:2])


@pytest.mark.parametrize("which", range(4))
def test_a_missing_value_is_an_error_and_not_a_better_score(which: int) -> None:
    tensors = _segment(4).tensors()
    tensors[which][2, 0] = math.nan
    name = ("joints", "target", "root", "target_root")[which]
    scores = WorldAccumulator()
    with pytest.raises(ValueError, match=f"^{name}: 1 of 4 scored frames are not finite"):
        scores.update(*tensors)
    assert scores.num_segments == 0
    if which > 1:
        name = ("position", "target")[which - 2]
        with pytest.raises(ValueError, match=f"^{name}: 1 of 4 scored frames are not finite"):
            scores.update_camera(tensors[2], tensors[3])
