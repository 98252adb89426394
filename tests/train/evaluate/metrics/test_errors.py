import math

import numpy as np
import pytest
import torch

from tests.reference import points
from train.evaluate.metrics import errors
from train.evaluate.metrics.errors import (
    add,
    auc,
    distance,
    error_sums,
    mean_error,
    pck_curve,
    require_finite,
    require_same_shape,
    require_shape,
    thresholds,
    zero_sums,
)


def _random(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Errors [40, 6] with NaN where not valid; some lie on a threshold of 0..50."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(20, (40, 6))
    limits = np.linspace(0, 50, 100)
    values[:8] = limits[rng.integers(0, 100, (8, 6))]
    values[8, :3] = limits[[0, 50, 99]]
    values[9] = np.nextafter(limits[[1, 20, 40, 60, 80, 99]], np.inf)
    valid = rng.random(values.shape) > 0.3
    valid[:, 4] = False  # a point no sample has
    return np.where(valid, values, np.nan), valid


@pytest.mark.parametrize(("most", "steps"), [(50.0, 100), (0.05, 100), (30.0, 11)])
def test_thresholds_have_the_bits_of_numpy(most: float, steps: int) -> None:
    assert np.array_equal(thresholds(most, steps).numpy(), np.linspace(0, most, steps))


def test_distance_matches_numpy_and_is_exact_along_an_axis() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 200, 21, 3))
    expected = np.sqrt(np.sum(np.square(first - second), axis=-1))
    actual = distance(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=5e-16)  # 2 ULP
    flat = distance(torch.from_numpy(first)[..., :2], torch.from_numpy(second)[..., :2])
    assert flat[3, 4] == pytest.approx(math.dist(first[3, 4, :2], second[3, 4, :2]), rel=5e-16)
    for axis, most in ((0, 0.05), (1, 50.0), (2, 0.3)):  # so an error can lie on a threshold
        offset = torch.zeros(100, 3, dtype=torch.float64)
        offset[:, axis] = thresholds(most)
        assert torch.equal(distance(-offset, torch.zeros_like(offset)), thresholds(most))


def test_mean_area_and_curve_match_the_loops() -> None:
    values, valid = _random()
    limits = np.linspace(0, 50, 100)
    sums = error_sums(torch.from_numpy(values), torch.from_numpy(valid), thresholds(50.0))
    mean, area = points.mean_and_auc(list(values), limits)
    assert mean_error(sums) == pytest.approx(mean, rel=1e-12)
    assert auc(sums) == pytest.approx(area, abs=1e-12)
    seen = [k for k in range(6) if valid[:, k].any()]
    for t, limit in enumerate(limits):
        shares = [np.mean(values[valid[:, k], k] <= limit) for k in seen]
        assert pck_curve(sums)[t] == pytest.approx(np.mean(shares), abs=1e-12)


def test_an_error_on_a_threshold_is_a_hit_and_the_next_float_is_not() -> None:
    limits = thresholds(0.05)
    above = torch.nextafter(limits, torch.tensor(math.inf, dtype=torch.float64))
    for rows, offset in ((limits, 0), (above, 1)):
        hits = error_sums(rows[None], None, limits).hits  # one point for each threshold
        expected = torch.arange(100)[:, None] >= torch.arange(100)[None] + offset
        assert torch.equal(hits, expected.long())


def test_area_of_one_error_by_hand() -> None:
    # On threshold 98 of 0..99: half a step from 97 to 98, and the last step.
    on = error_sums(thresholds(50.0)[98].reshape(1, 1), None, thresholds(50.0))
    assert auc(on) == pytest.approx(1.5 / 99, abs=1e-15)


def test_sums_of_batches_are_the_sums_of_all() -> None:
    values, valid = (torch.from_numpy(x) for x in _random(2))
    whole = error_sums(values, valid, thresholds(50.0))
    sums = zero_sums(6, thresholds(50.0))
    for rows in (slice(0, 1), slice(1, 1), slice(1, 30), slice(30, 40)):
        add(sums, error_sums(values[rows], valid[rows], thresholds(50.0)))
    assert torch.equal(sums.count, whole.count)
    assert torch.equal(sums.hits, whole.hits)
    torch.testing.assert_close(sums.total, whole.total, rtol=1e-14, atol=0)


def test_float32_errors_are_compared_in_float64() -> None:
    one = torch.tensor([[0.1]])  # 0.1 in float32 is above 0.1
    assert error_sums(one, None, torch.tensor([0.0, 0.1]).double()).hits[-1, 0] == 1
    assert error_sums(one, None, torch.tensor([0, 0.1], dtype=torch.float64)).hits[-1, 0] == 0


def test_no_sample_is_a_clear_error() -> None:
    sums = zero_sums(21, thresholds(50.0))
    for score in (mean_error, auc, pck_curve):
        with pytest.raises(ValueError, match="no hand to score: all 21 points have no valid"):
            score(sums)


def test_refusals_say_what_is_wrong() -> None:
    broken = torch.zeros(4, 21, 3)
    broken[1, 5, 0], broken[2, 3, 2] = math.nan, math.inf
    with pytest.raises(
        ValueError, match=r"^joints: 2 of 4 scored hands are not finite .first: \d+.$"
    ):
        require_finite("joints", broken)
    valid = torch.ones(4, 21, dtype=torch.bool)
    valid[1, 5] = False
    with pytest.raises(
        ValueError, match=r"^points: 1 of 4 scored objects are not finite .first: \d+.$"
    ):
        require_finite("points", broken, valid, what="objects")
    valid[2, 3] = False
    require_finite("points", broken, valid)
    with pytest.raises(ValueError, match=r"got \(4, 21, 3\) and \(4, 20, 3\)"):
        require_same_shape(broken, broken[:, 1:])
    with pytest.raises(ValueError, match=r"^K must have shape \(4, 3, 3\), got \(4, 21, 3\)$"):
        require_shape("K", broken, 4, 3, 3)
    assert errors.ErrorSums.__dataclass_fields__.keys() == {"total", "count", "hits", "thresholds"}
