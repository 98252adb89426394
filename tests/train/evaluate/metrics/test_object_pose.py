import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.geometry.rotation import axis_angle_to_rotmat
from tests.reference import object_pose as reference
from tests.strategies import rotvecs
from tests.train.evaluate.metrics.scenes import to_tensors
from train.evaluate.metrics.object_pose import (
    ObjectAccumulator,
    ObjectScores,
    add_mm,
    add_s_mm,
    rotation_error_deg,
    translation_error_mm,
)

NUM = 8
NAMES = ("points", "pred_R", "pred_t", "true_R", "true_t", "diameter_m", "symmetric", "symmetries")
HALF_TURN = np.diag([-1.0, -1, 1])


def _samples() -> dict[str, np.ndarray]:
    """Eight objects, from nearly right to half a turn off; every second one symmetric."""
    rng = np.random.default_rng(0)
    points = rng.normal(0, 0.04, (NUM, 60, 3))
    points[1::2, 30:] = points[1::2, :30] @ HALF_TURN
    true_R = Rotation.random(NUM, rng=1).as_matrix()
    off_deg = np.array([0, 0.5, 3, 3, 20, 20, 90, 180])
    off = Rotation.from_rotvec(np.radians(off_deg)[:, None] * [[0.6, 0, 0.8]]).as_matrix()
    pred_R = true_R @ off
    pred_R[1::2] = pred_R[1::2] @ HALF_TURN
    true_t = rng.normal([0, 0, 0.6], 0.05, (NUM, 3))
    return {
        "points": points,
        "pred_R": pred_R,
        "pred_t": true_t + rng.normal(0, 0.004, (NUM, 3)),
        "true_R": true_R,
        "true_t": true_t,
        "diameter_m": np.linalg.norm(points[:, :, None] - points[:, None], axis=-1).max((1, 2)),
        "symmetric": np.arange(NUM) % 2 == 1,
        "symmetries": np.stack(
            [[np.eye(3), HALF_TURN if i % 2 else np.eye(3)] for i in range(NUM)]
        ),
    }


def _tensors(samples: dict[str, np.ndarray]) -> list[Tensor]:
    return to_tensors(*(samples[name] for name in NAMES))


def _rows(samples: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    return [{name: samples[name][i] for name in NAMES} for i in range(NUM)]


def _scores(tensors: list[Tensor]) -> ObjectScores:
    accumulator = ObjectAccumulator()
    accumulator.update(*tensors)
    return accumulator.summary()


def test_scores_match_the_loops() -> None:
    samples = _samples()
    actual = asdict(_scores(_tensors(samples)))
    expected = reference.score(_rows(samples))
    assert actual == pytest.approx(expected, rel=1e-9)
    shares = [actual[name] for name in ("add_01d", "add_or_s_01d", "add_s_01d")]
    assert 0 < shares[0] < shares[1] < shares[2] < 1


def test_errors_match_the_loops_for_each_sample() -> None:
    samples = _samples()
    pose = [samples[name] for name in NAMES[:5]]
    tensors = to_tensors(*pose)
    rows = list(zip(*pose, strict=True))
    expected = [reference.add(*row) for row in rows]
    np.testing.assert_allclose(add_mm(*tensors).numpy(), expected, rtol=1e-12)
    expected = [reference.add_s(*row) for row in rows]
    np.testing.assert_allclose(add_s_mm(*tensors).numpy(), expected, rtol=1e-12)
    expected = [reference.translation(row[2], row[4]) for row in rows]
    actual = translation_error_mm(tensors[2], tensors[4])
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)
    for symmetries in (None, samples["symmetries"], samples["symmetries"][1:2]):
        of = [None if symmetries is None else symmetries[i % len(symmetries)] for i in range(NUM)]
        expected = [reference.rotation_deg(rows[i][1], rows[i][3], of[i]) for i in range(NUM)]
        S = None if symmetries is None else torch.from_numpy(symmetries)
        actual = rotation_error_deg(tensors[1], tensors[3], S)
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(rotvecs(), rotvecs())
def test_the_angle_is_precise_at_both_ends(aa: Tensor, base: Tensor) -> None:
    R = axis_angle_to_rotmat(base)
    turned = R @ axis_angle_to_rotmat(aa)
    expected = math.degrees(float(aa.square().sum().sqrt()))
    assert float(rotation_error_deg(turned[None], R[None])) == pytest.approx(expected, abs=1e-12)
    assert float(rotation_error_deg(R[None], turned[None])) == pytest.approx(expected, abs=1e-12)


def test_add_s_asks_for_every_true_point() -> None:
    """Points at 0, 10, 100 mm, predicted at 95, 105, 195 mm."""
    points = torch.tensor([[[0.0, 0, 0], [0.01, 0, 0], [0.1, 0, 0]]])
    identity, t = torch.eye(3)[None], torch.zeros(1, 3)
    pose = (points, identity, torch.tensor([[0.095, 0, 0]]), identity, t)
    assert float(add_mm(*pose)) == pytest.approx(95)
    assert float(add_s_mm(*pose)) == pytest.approx((95 + 85 + 5) / 3)  # not (5 + 5 + 95) / 3


def test_an_error_on_a_tenth_of_the_diameter_is_not_right() -> None:
    identity, zero = torch.eye(3).expand(2, 3, 3).double(), torch.zeros(2, 3).double()
    points, flags = torch.zeros(2, 4, 3).double(), torch.tensor([False, True])
    diameter = torch.full((2,), 0.137, dtype=torch.float64)
    at = zero.clone()
    at[:, 1] = 0.1 * 0.137
    scores = _scores([points, identity, at, identity, zero, diameter, flags])
    assert (scores.add_01d, scores.add_s_01d, scores.add_or_s_01d) == (0, 0, 0)
    at[:, 1] = float(np.nextafter(0.1 * 0.137, 0))
    scores = _scores([points, identity, at, identity, zero, diameter, flags])
    assert (scores.add_01d, scores.add_s_01d, scores.add_or_s_01d) == (1, 1, 1)


def test_streaming_equals_all_at_once_and_float32_is_scored_in_float64() -> None:
    tensors = [x.float() if x.is_floating_point() else x for x in _tensors(_samples())]
    accumulator = ObjectAccumulator()
    for rows in (slice(0, 1), slice(1, 1), slice(1, 6), slice(6, None)):
        accumulator.update(*(x[rows] for x in tensors))
    whole = _scores([x.double() if x.is_floating_point() else x for x in tensors])
    assert asdict(accumulator.summary()) == pytest.approx(asdict(whole), rel=1e-13)


def test_bad_input_is_an_error() -> None:
    bad: list[tuple[str, Any, str]] = [
        (
            "points",
            lambda x: x * math.nan,
            r"^points: 8 of 8 scored objects are not finite .first: \d+.$",
        ),
        ("points", lambda x: x[..., :2], r"^points must have shape \(8, 60, 3\), got \(8, 60, 2\)"),
        ("pred_R", lambda x: 1.01 * x, r"^pred_R must hold rotation matrices; 8 of 8 are not"),
        ("true_R", lambda x: -x, r"^true_R must hold rotation matrices; 8 of 8 are not"),
        ("true_R", lambda x: x * math.nan, r"^true_R must hold rotation matrices; 8 of 8 are not"),
        ("symmetries", lambda x: 0 * x, r"^symmetries must hold rotation matrices; 16 of 16"),
        (
            "pred_t",
            lambda x: x * math.inf,
            r"^pred_t: 8 of 8 scored objects are not finite .first: \d+.$",
        ),
        ("true_t", lambda x: x[:3], r"^true_t must have shape \(8, 3\), got \(3, 3\)$"),
        ("diameter_m", lambda x: 0 * x, r"^diameter_m must be positive metres; 8 of 8 are not$"),
    ]
    for name, change, message in bad:
        tensors = dict(zip(NAMES, _tensors(_samples()), strict=True))
        tensors[name] = change(tensors[name])
        with pytest.raises(ValueError, match=message):
            _scores(list(tensors.values()))
    with pytest.raises(ValueError, match="no object was scored"):
        ObjectAccumulator().summary()
