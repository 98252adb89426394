from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reference import arctic as reference
from train.evaluate.metrics import arctic_contact
from train.evaluate.metrics.arctic_contact import (
    ContactWindow,
    contact_deviation_mm,
    contact_windows,
    motion_deviation_mm,
    nearest_vertices,
)

FAR = -1
NUM_VERTICES = 8
"""Of the object: pairs 2 mm apart (0 and 1, 2 and 3, ...), 50 mm between pairs."""


def _scene(touched: Sequence[Sequence[int]], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hand [f, n, 3] and moving object [f, v, 3].

    Hand vertex i is at object vertex ``touched[i][f]``; ``FAR`` stands for no contact.
    """
    rng = np.random.default_rng(seed)
    num_frames = len(touched[0])
    shape = np.zeros((NUM_VERTICES, 3))
    shape[:, 0] = np.repeat(np.arange(NUM_VERTICES // 2), 2) * 0.05
    shape[1::2, 1] = 0.002
    path = rng.normal(0, 0.01, (num_frames, 1, 3)).cumsum(0) + np.array([0, 0, 0.8])
    thing = shape + path
    hand = np.empty((num_frames, len(touched), 3))
    for i, one in enumerate(touched):
        for f, j in enumerate(one):
            apart = rng.uniform(-0.0004, 0.0004, 3) if j != FAR else [0.02, 0.03, 0.2]
            hand[f, i] = thing[f, j] + apart
    return hand, thing


def _windows(hand: np.ndarray, thing: np.ndarray, *, strict: bool = False) -> list[ContactWindow]:
    distance, index, _ = nearest_vertices(torch.from_numpy(hand), torch.from_numpy(thing))
    return contact_windows(distance, index, torch.from_numpy(thing[0]), strict=strict)


def _as_tuples(windows: list[ContactWindow]) -> list[tuple[int, int, int, int]]:
    return [(w.hand_vertex, w.first, w.last, w.object_vertex) for w in windows]


def _noisy(points: np.ndarray, seed: int) -> np.ndarray:
    return points + np.random.default_rng(seed).normal(0, 0.004, points.shape)


def _valid(num: int) -> Tensor:
    return torch.ones(num, dtype=torch.bool)


def test_nearest_vertices_match_the_loops() -> None:
    rng = np.random.default_rng(0)
    hand = rng.normal([0, 0, 1], 0.05, (4, 11, 3))
    thing = rng.normal([0.04, 0, 1], 0.05, (4, 7, 3))
    hand[1, 2], thing[2] = [5, 5, 5], thing[2] + 0.09  # beyond the cut
    distance, index, back = nearest_vertices(torch.from_numpy(hand), torch.from_numpy(thing))
    expected, expected_index = reference.nearest(hand, thing)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_allclose(back, reference.nearest(thing, hand)[0], rtol=1e-12)
    assert float(distance[1, 2]) == 0.1


def test_float32_distances_are_taken_in_float64() -> None:
    rng = np.random.default_rng(0)
    hand = rng.normal([0, 0, 2], 0.002, (2, 5, 3)).astype(np.float32)
    thing = rng.normal([0, 0, 2], 0.002, (2, 30, 3)).astype(np.float32)
    distance, _, _ = nearest_vertices(torch.from_numpy(hand), torch.from_numpy(thing))
    np.testing.assert_allclose(distance, reference.nearest(hand, thing)[0], rtol=1e-12)


def test_the_first_of_equally_near_vertices_counts() -> None:
    thing = torch.tensor([[[0.0, 0, 1], [0, 0, -1], [0, 0, 1]]])
    _, index, _ = nearest_vertices(torch.zeros(1, 1, 3), thing)
    assert index.tolist() == [[0]]


def test_chunks_bound_the_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    hand, thing = (torch.from_numpy(rng.normal(0, 0.05, (7, n, 3))) for n in (5, 6))
    whole = nearest_vertices(hand, thing)
    sizes = []
    cdist = torch.cdist

    def measured(first: Tensor, second: Tensor, compute_mode: str) -> Tensor:
        apart: Tensor = cdist(first, second, compute_mode=compute_mode)
        sizes.append(apart.nbytes)
        return apart

    monkeypatch.setattr(torch, "cdist", measured)
    for limit, expected in ((3 * 240, [720, 720, 240]), (1, [240] * 7)):  # one frame at least
        monkeypatch.setattr(arctic_contact, "CHUNK_BYTES", limit)
        sizes.clear()
        for part, all_at_once in zip(nearest_vertices(hand, thing), whole, strict=True):
            assert torch.equal(part, all_at_once)
        assert sizes == expected


def test_contact_deviation_matches_the_loops() -> None:
    touched = [[0, FAR, 2, 4], [FAR, FAR, 3, 4], [6, FAR, FAR, 7]]
    hand, thing = _scene(touched)
    pred_hand, pred_object = _noisy(hand, 1), _noisy(thing, 2)
    distance, index, _ = nearest_vertices(torch.from_numpy(hand), torch.from_numpy(thing))
    is_scored = torch.tensor([True, True, True, False])
    actual = contact_deviation_mm(
        torch.from_numpy(pred_hand), torch.from_numpy(pred_object), distance, index, is_scored
    )
    expected = reference.cdev(
        (hand, hand + 9),  # no left hand
        thing,
        (pred_hand, pred_hand),
        pred_object,
        (is_scored.numpy(), is_scored.numpy()),
        np.ones(4),
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_array_equal(actual.isnan(), [False, True, False, True])


def test_contact_at_exactly_3_mm_counts_for_the_deviation_only() -> None:
    distance = torch.full((20, 1), 0.003, dtype=torch.float64)
    index = torch.zeros(20, 1, dtype=torch.int64)
    points = torch.zeros(20, 1, 3)
    assert contact_deviation_mm(points, points, distance, index, _valid(20)).eq(0).all()
    assert contact_windows(distance, index, points[0], strict=True) == []
    assert len(contact_windows(distance - 1e-9, index, points[0], strict=True)) == 1


CASES = {
    # 30 frames, one hand vertex each: (touched, windows by default, windows with strict)
    "at the first frame": ([0] * 15 + [FAR] * 15, [(0, 14, 0)], [(0, 14, 0)]),
    "in the middle": ([FAR] * 6 + [3] * 17 + [FAR] * 7, [(6, 22, 3)], [(6, 22, 3)]),
    "ends before the last frame": ([FAR] * 9 + [4] * 20 + [FAR], [(9, 28, 4)], [(9, 28, 4)]),
    "open at the last frame": ([FAR] * 9 + [4] * 21, [], [(9, 29, 4)]),
    "all the time": ([2] * 30, [], [(0, 29, 2)]),
    "one frame short": ([FAR] * 6 + [3] * 14 + [FAR] * 10, [], []),
    "15 frames in two parts": ([3] * 10 + [FAR] * 2 + [3] * 10 + [FAR] * 8, [], []),
    "15 frames in the last 15": ([FAR] * 15 + [0] * 15, [], [(15, 29, 0)]),
    "two in a row": ([0] * 14 + [FAR] + [5] * 15, [], [(15, 29, 5)]),
    "slides over the object": ([0] * 5 + [2] * 5 + [4] * 5 + [6] * 5 + [FAR] * 10, [], []),
    "slides by 2 mm": ([0] * 9 + [1] * 11 + [FAR] * 10, [(0, 19, 1)], [(0, 19, 1)]),
    "a tie goes to the smallest": ([1] * 8 + [0] * 8 + [FAR] * 14, [(0, 15, 0)], [(0, 15, 0)]),
    "never": ([FAR] * 30, [], []),
}  # fmt: skip
Triple = tuple[int, int, int]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("touched", "by_default", "strictly"), CASES.values(), ids=CASES.keys())
def test_contact_windows_by_hand(
    touched: list[int], by_default: list[Triple], strictly: list[Triple], *, strict: bool
) -> None:
    hand, thing = _scene([touched])
    expected = [(0, *window) for window in (strictly if strict else by_default)]
    assert reference.contact_windows(hand, thing, strict=strict) == expected
    assert _as_tuples(_windows(hand, thing, strict=strict)) == expected


@pytest.mark.parametrize("strict", [False, True])
def test_windows_come_by_vertex_then_time(*, strict: bool) -> None:
    early, late = [0] * 15 + [FAR] * 18, [FAR] * 16 + [2] * 16 + [FAR]
    both = [0] * 15 + [FAR] + [2] * 16 + [FAR]
    hand, thing = _scene([late, both, [FAR] * 33, early])
    actual = _as_tuples(_windows(hand, thing, strict=strict))
    assert actual == [(0, 16, 31, 2), (1, 0, 14, 0), (1, 16, 31, 2), (3, 0, 14, 0)]
    assert actual == reference.contact_windows(hand, thing, strict=strict)


def test_the_spread_of_long_windows_is_diluted_by_default() -> None:
    """10 frames at each of two vertices, so 100 of the 190 pairs of frames are apart.

    By default the 400 entries of the matrix, 200 of them apart, lose the 120 of the upper triangle
    of the leading block, 50 of them apart: 150 / 280. Just above and below the limit.
    """
    touched = [0] * 10 + [1] * 10 + [FAR]
    distance = torch.zeros(21, 1, dtype=torch.float64)
    distance[-1] = 1
    index = torch.tensor(touched).clamp(min=0)[:, None]
    for share, strict in ((150 / 280, False), (100 / 190, True)):
        for gap, num in ((0.003 / share * 0.999, 1), (0.003 / share * 1.001, 0)):
            surface = torch.tensor([[0.0, 0, 0], [gap, 0, 0]], dtype=torch.float64)
            assert len(contact_windows(distance, index, surface, strict=strict)) == num


@pytest.mark.parametrize("strict", [False, True])
def test_random_contacts_match_the_loops(*, strict: bool) -> None:
    """Spreads on both sides of the limit: vertices of pairs, and now and then of the next pair."""
    rng = np.random.default_rng(5)
    touched = []
    for _ in range(60):
        one = rng.integers(0, 2, 60)
        one[rng.random(60) < 0.06] = 2
        one[rng.random(60) < 0.04] = FAR
        touched.append(one.tolist())
    hand, thing = _scene(touched)
    expected = reference.contact_windows(hand, thing, strict=strict)
    assert _as_tuples(_windows(hand, thing, strict=strict)) == expected
    assert len(expected) > 10


def test_the_spread_is_measured_in_the_first_frame() -> None:
    """Vertices 0 and 2 come together after the first frame: still a slide of 50 mm."""
    hand, thing = _scene([[0] * 10 + [2] * 10 + [FAR] * 5])
    hand[10:20, 0] += thing[10:20, 1] - thing[10:20, 2]
    thing[10:, 2] = thing[10:, 1]
    index = nearest_vertices(torch.from_numpy(hand), torch.from_numpy(thing))[1]
    assert index[12] == 1  # vertex 1 is at the same place
    thing[10:, 2, 0] -= 0.0001
    hand[10:20, 0, 0] -= 0.0006
    index = nearest_vertices(torch.from_numpy(hand), torch.from_numpy(thing))[1]
    assert set(index[:20, 0].tolist()) == {0, 2}
    assert _windows(hand, thing) == []


def test_motion_deviation_matches_the_loops() -> None:
    touched = [[FAR] * 2 + [0] * 17 + [FAR] * 3, [2] * 15 + [FAR] * 7, [4] * 20 + [FAR] * 2]
    hand, thing = _scene(touched)
    pred_hand, pred_object = _noisy(hand, 1), _noisy(thing, 2)
    weight = np.ones(22)
    weight[[0, 5, 6, 9, 11, 18]] = 0, 0, 0.5, 0, 0, 0
    actual = motion_deviation_mm(
        torch.from_numpy(pred_hand),
        torch.from_numpy(pred_object),
        _windows(hand, thing),
        torch.from_numpy(weight > 0),
    )
    expected = reference.mdev(
        (hand, hand + 9), thing, (pred_hand, pred_hand), pred_object, (weight, weight), np.ones(22)
    )
    assert len(actual) == 3
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_motion_deviation_by_hand() -> None:
    """The hand moves 2 mm per frame away from an object that moves 1 mm along."""
    frames = torch.arange(20, dtype=torch.float64)[:, None, None]
    hand = frames * torch.tensor([0.002, 0, 0])
    surface = frames * torch.tensor([0.001, 0, 0])
    window = ContactWindow(hand_vertex=0, first=2, last=17, object_vertex=0)
    assert motion_deviation_mm(hand, surface, [window], _valid(20)) == pytest.approx(1)
    alternate = torch.arange(20) % 2 == 0  # no two neighbours
    assert motion_deviation_mm(hand, surface, [window], alternate).isnan().all()


def test_a_hand_that_moves_with_the_object_has_no_motion_deviation() -> None:
    hand, thing = _scene([[0] * 18 + [FAR] * 2])
    hand[:18, 0] = thing[:18, 0]
    windows = _windows(hand, thing)
    hand, thing = hand + 0.5, thing - 0.25  # anywhere
    args = torch.from_numpy(hand), torch.from_numpy(thing), windows, _valid(20)
    assert motion_deviation_mm(*args) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num_frames", [1, 2, 14])
def test_sequences_too_short_for_a_window(num_frames: int) -> None:
    hand, thing = _scene([[0] * num_frames])
    for strict in (False, True):
        windows = _windows(hand, thing, strict=strict)
        assert windows == []
        args = torch.from_numpy(hand), torch.from_numpy(thing), windows, _valid(num_frames)
        values = motion_deviation_mm(*args)
        assert values.shape == (0,)
        assert values.dtype == torch.float64
