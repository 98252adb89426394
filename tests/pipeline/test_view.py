from pathlib import Path

import numpy as np
import pytest
import torch

from model.geometry.crop import apply
from pipeline.config import ViewConfig, ViewKind
from pipeline.store.errors import StoreError
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import FLAGS
from pipeline.view import build_view, samples_at, split_rows
from tests.pipeline.hand_store import HEIGHT, WIDTH, hand_store, has_hand

ROWS = np.arange(12)
HANDS = [2 * row + slot for row in range(12) for slot in range(2) if has_hand(row, slot)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(hand_store(tmp_path_factory.mktemp("view") / "s.zarr", unreadable=(5,)))


def test_a_hand_is_a_sample(store: Store) -> None:
    view = build_view(store, ROWS, ViewConfig(), 64, training=True)
    assert view.sample_id.tolist() == [i for i in HANDS if i // 2 != 5]
    assert torch.equal(view.row, view.sample_id // 2)
    assert len(view) == len(view.row)


def test_hand_square_is_the_padded_box(store: Store) -> None:
    config = ViewConfig(pad=1.6, margin=1.3)
    view = build_view(store, ROWS, config, 64, training=True)
    for k in range(len(view)):
        x0, y0, x1, y1 = store.label("bbox_xyxy")[view.row[k], view.sample_id[k] % 2].tolist()
        assert view.center_px[k].tolist() == [(x0 + x1) / 2, (y0 + y1) / 2]
        side = max(x1 - x0, y1 - y0) * 1.6
        assert view.size_px[k].item() == pytest.approx(side, rel=1e-12)
        # the cached square is 1.3 as large about the same centre; corners are outer pixel edges
        edge = 1.3 * side / 2
        corners = view.center_px[k] + torch.tensor([[-edge], [edge]], dtype=torch.float64)
        expected = [[-0.5, -0.5], [63.5, 63.5]]
        np.testing.assert_allclose(apply(view.A_cache_from_frame[k], corners), expected, atol=1e-9)


def test_frame_view_is_the_letterboxed_frame(store: Store) -> None:
    config = ViewConfig(kind=ViewKind.frame, margin=1.3)
    view = build_view(store, ROWS, config, 64, training=True)
    assert view.sample_id.tolist() == [2 * row for row in range(12) if row != 5]
    assert view.size_px.tolist() == [float(WIDTH)] * 11
    # outer edges of the frame: left and right fill the square, above and below leave bars
    edges = torch.tensor([[-0.5, -0.5], [WIDTH - 0.5, HEIGHT - 0.5]]).double()
    bar = (WIDTH - HEIGHT) / 2 * 64 / WIDTH
    expected = [[-0.5, bar - 0.5], [63.5, 63.5 - bar]]
    np.testing.assert_allclose(apply(view.A_cache_from_frame[0], edges), expected, atol=1e-9)


def test_the_split_keeps_its_order(store: Store) -> None:
    rows = split_rows(store, "val", 1.0)
    view = build_view(store, rows, ViewConfig(kind=ViewKind.frame), 64, training=False)
    assert view.row.tolist() == [11, 9, 7, 3, 1]


def test_subset_is_evenly_spaced(store: Store) -> None:
    assert split_rows(store, "train", 0.25).tolist() == [2, 6, 10]
    assert split_rows(store, "train", 1e-6).tolist() == [6]
    with pytest.raises(StoreError, match="no split 'test'; choices: all"):
        split_rows(store, "test", 1.0)


def test_flags_and_joints_are_left_out_by_choice(tmp_path: Path) -> None:
    flagged = hand_store(
        tmp_path / "s.zarr", 6, quality=FLAGS["behind_camera"], has_joints=[True, False]
    )
    store = open_store(flagged)
    strict = ViewConfig(exclude_flags=["behind_camera", "no_mano"])
    with pytest.raises(ValueError, match=r"none of 12 samples is left: 0 with .*, 12 with an exc"):
        build_view(store, ROWS[:6], strict, 64, training=True)
    kept = build_view(store, ROWS[:6], strict, 64, training=False)
    assert len(kept) == len([i for i in HANDS if i < 12])
    mild = ViewConfig(exclude_flags=["outside_image"], require_joints=True)
    kept = build_view(store, ROWS[:6], mild, 64, training=True)
    assert kept.sample_id.tolist() == [0, 2, 4, 8, 10]


def test_a_sample_of_a_table(store: Store) -> None:
    view = build_view(store, ROWS, ViewConfig(), 64, training=True)
    some = samples_at(view, torch.tensor([3, 0]))
    assert some.sample_id.tolist() == [int(view.sample_id[3]), int(view.sample_id[0])]
    assert torch.equal(some.A_cache_from_frame[1], view.A_cache_from_frame[0])
