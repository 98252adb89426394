import numpy as np
import pytest
import torch

from tests.reference import points
from train.evaluate.metrics import fscore
from train.evaluate.metrics.fscore import f_score, f_score_of, nearest_distances


def _sets(num: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + m)
    return rng.normal(0, 0.02, (num, n, 3)), rng.normal(0, 0.02, (num, m, 3))


@pytest.mark.parametrize(("n", "m"), [(40, 40), (30, 70), (1, 9)])
@pytest.mark.parametrize("threshold", [0.005, 0.015])
def test_f_score_matches_a_kd_tree(n: int, m: int, threshold: float) -> None:
    pred, truth = _sets(4, n, m)
    actual = f_score(torch.from_numpy(pred), torch.from_numpy(truth), threshold)
    expected = [points.f_score(truth[i], pred[i], threshold) for i in range(4)]
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-15)


def test_chunks_over_samples_and_points_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (torch.from_numpy(x) for x in _sets(7, 23, 31))
    expected = [x.clone() for x in nearest_distances(first, second)]
    brute = (first[:, :, None] - second[:, None]).square().sum(-1).sqrt()
    for most in (1, 31 * 4, 23 * 31, 23 * 31 * 3):
        monkeypatch.setattr(fscore, "MAX_DISTANCES", most)
        for actual, same, axis in zip(
            nearest_distances(first, second), expected, (2, 1), strict=True
        ):
            assert torch.equal(actual, same)
            torch.testing.assert_close(actual, brute.amin(axis), rtol=1e-12, atol=0)


def test_no_matrix_is_larger_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    cdist = torch.cdist

    def measured(x1: torch.Tensor, x2: torch.Tensor, *, compute_mode: str) -> torch.Tensor:
        result = cdist(x1, x2, compute_mode=compute_mode)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(fscore, "MAX_DISTANCES", 100)
    monkeypatch.setattr(torch, "cdist", measured)
    for n, m in ((5, 5), (3, 40), (90, 2)):
        nearest_distances(*(torch.from_numpy(x) for x in _sets(6, n, m)))
    assert max(sizes) <= 100


def test_a_distance_on_the_threshold_is_not_nearer() -> None:
    one = torch.zeros(1, 1, 3, dtype=torch.float64)
    two = torch.tensor([[[0.0, 0, 0], [0, 0, 0.015]]], dtype=torch.float64)
    for pred, truth in ((one, two), (two, one)):
        assert f_score(pred, truth, 0.015).tolist() == [pytest.approx(2 / 3)]
        assert f_score(pred, truth, float(np.nextafter(0.015, 1))).tolist() == [1.0]


def test_precision_is_of_the_prediction_and_recall_of_the_truth() -> None:
    near, far = torch.zeros(1, 4).double(), torch.ones(1, 6).double()
    far[0, 0] = 0
    assert float(f_score_of(near, far, 0.5)) == pytest.approx(2 / 6 / (1 + 1 / 6))
    assert float(f_score_of(near + 1, far + 1, 0.5)) == 0


def test_float32_and_no_samples() -> None:
    pred, truth = (torch.from_numpy(x).float() for x in _sets(2, 9, 9))
    expected = f_score(pred.double(), truth.double(), 0.01)
    assert torch.equal(f_score(pred, truth, 0.01), expected)
    assert f_score(pred[:0], truth[:0], 0.01).shape == (0,)
    with pytest.raises(ValueError, match="both point sets must have points, got 0 and 9"):
        f_score(pred[:, :0], truth, 0.01)
