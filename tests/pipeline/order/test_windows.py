from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tests.strategies  # noqa: F401  (loads the hypothesis profile)
from pipeline.config import Boundary, WindowConfig
from pipeline.order.epoch import epoch_batches, num_virtual_shards
from pipeline.order.mix import mixed_batch
from pipeline.order.parts import Order
from pipeline.order.windows import (
    Windows,
    build_windows,
    frames_of,
    most_central,
    owned_windows,
    window_order,
)
from tests.reference import windows as reference

WORLDS = (1, 2, 4, 8)
Sample = tuple[int, int, int, int]  # sequence, camera, frame, slot
GOLDEN_ORDER = [0, 2, 4, 6, 8, 10, 12, 14, 3, 5, 7, 9, 11, 13, 15, 1, 18, 20]
GOLDEN_BATCHES = [[46, 41, 48, 31], [25, 63, 43, 37], [16, 13, 20, 59]]


def window_batches(
    num: int, batch_size: int, seed: int, epoch: int, *, block: int, rank: int = 0, world: int = 1
) -> Tensor:
    order = Order(
        sizes=(num,), weights=(1.0,), batch_size=batch_size, seed=seed, block=block, rank=rank,
        world=world,
    )  # fmt: skip
    return torch.stack(list(order.batches(epoch, 0)))


def build(samples: list[Sample], **config: Any) -> Windows:
    sequence, camera, frame, slot = torch.tensor(samples, dtype=torch.int64).view(-1, 4).unbind(1)
    return build_windows(sequence, camera, frame, slot, WindowConfig(**config))


def one_run(num_frames: int, frame_stride: int = 1) -> list[Sample]:
    return [(0, 0, 5 + frame * frame_stride, 0) for frame in range(num_frames)]


def pairs(windows: Windows) -> list[list[tuple[int, bool]]]:
    rows = zip(windows.index.tolist(), windows.is_real.tolist(), strict=True)
    return [list(zip(index, real, strict=True)) for index, real in rows]


@st.composite
def views(draw: st.DrawFn) -> list[Sample]:
    """Samples of a few sequences, cameras and slots, with gaps, in any order, any frame stride."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    strides, kept = rng.choice([1, 3, 10], 3), rng.choice([0.1, 0.6, 0.95], 3)
    later = 12 * rng.integers(2)  # the next hand, camera, sequence goes on where the last one ends
    view = [(s - 1, c, int((f + later * (4 * s + 2 * c + slot)) * strides[s]), slot)
            for s, c, f, slot in np.ndindex(3, 2, 12, 2) if rng.random() < kept[s]]  # fmt: skip
    return [view[place] for place in rng.permutation(len(view))]


@given(
    views(), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3),
    st.sampled_from(list(Boundary)), st.sampled_from([0, 0, 1, 3]),
)  # fmt: skip
def test_windows_are_those_of_the_loops(
    view: list[Sample], length: int, stride: int, step: int, boundary: Boundary, frame_stride: int
) -> None:
    expected = reference.windows(
        view, length, stride, step,
        repeat=boundary is Boundary.repeat, given_stride=frame_stride,
    )  # fmt: skip
    config = {
        "length": length, "stride": stride, "step": step,
        "boundary": boundary, "frame_stride": frame_stride,
    }  # fmt: skip
    if not expected:
        with pytest.raises(ValueError, match="use a shorter window or"):
            build(view, **config)
        return
    found = pairs(build(view, **config))
    if length == stride == 1:  # the view's own order
        expected.sort()
    assert found == expected
    for window in found:
        assert len({(view[i][0], view[i][1], view[i][3]) for i, _ in window}) == 1


def test_drop_leaves_out_what_does_not_fit() -> None:
    windows = build(one_run(8), length=3, stride=2, step=2)
    assert windows.index.tolist() == [[0, 2, 4], [2, 4, 6]]
    assert windows.is_real.all()


def test_repeat_marks_the_edge_frame() -> None:
    windows = build(one_run(5), length=3, stride=2, step=1, boundary=Boundary.repeat)
    assert windows.index.tolist() == [[0, 1, 2], [2, 3, 4], [4, 4, 4]]
    assert windows.is_real.tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert len(windows) == 3


def test_a_gap_ends_a_run() -> None:
    samples = one_run(7)
    del samples[3]
    assert build(samples, length=2).index.tolist() == [[0, 1], [1, 2], [3, 4], [4, 5]]


def test_cameras_slots_and_sequences_do_not_mix() -> None:
    samples = [(s, c, f, h) for s in (0, 1) for c in (0, 1) for f in (0, 1) for h in (0, 1)]
    index = build(samples, length=2).index
    assert index.tolist() == [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9, 11], [12, 14], [13, 15]]


def test_frame_numbers_that_go_on_do_not_join() -> None:
    # (sequence, camera, slot) of neighbouring runs differ in one of the three
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)]
    samples = [(s, c, 2 * run + f, h) for run, (s, c, h) in enumerate(keys) for f in (0, 1)]
    index = build(samples, length=2, frame_stride=1).index
    assert index.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_frame_stride_is_detected_per_sequence() -> None:
    # sequence 0 advances by 1, sequence 1 by 3: there a step of 6 is a gap
    samples = [(0, 0, f, 0) for f in (0, 1, 4)] + [(1, 0, f, 0) for f in (0, 3, 9, 12)]
    assert build(samples, length=2).index.tolist() == [[0, 1], [3, 4], [5, 6]]


def test_a_hand_seen_rarely_has_the_frame_stride_of_the_other() -> None:
    samples = [*one_run(9), *((0, 0, 5 + f, 1) for f in (0, 4, 8))]
    assert (build(samples, length=2).index < 9).all()


def test_frame_stride_can_be_given() -> None:
    assert len(build(one_run(4, 10), length=2)) == 3
    assert len(build(one_run(4, 10), length=2, frame_stride=10)) == 3
    with pytest.raises(ValueError, match=r"needs runs of 2 frames, the longest of 4 has 1"):
        build(one_run(4, 10), length=2, frame_stride=1)


def test_length_one_gives_the_samples() -> None:
    samples = [(0, 0, 3, 0), (0, 0, 1, 0), (0, 0, 3, 0)]  # out of order, one frame twice
    windows = build(samples)
    assert windows.index.tolist() == [[0], [1], [2]]
    assert windows.is_real.all()
    assert build(one_run(5)[::-1], stride=2).index.tolist() == [[4], [2], [0]]


def test_golden_order() -> None:
    # Any change of the order breaks this test, and with it the resumption of every run made so far.
    # Only update the values if you know what you're doing.
    assert window_order(71, block=2)[:18].tolist() == GOLDEN_ORDER
    assert window_batches(71, 4, 42, 0, block=2)[:3].tolist() == GOLDEN_BATCHES


@given(st.integers(1, 3000), st.integers(1, 70))
def test_shards_hold_blocks_of_neighbours(num: int, block: int) -> None:
    order = window_order(num, block=block)
    assert order.sort().values.tolist() == list(range(num))
    shards = num_virtual_shards(num)
    position = torch.arange(num)
    shard = torch.empty_like(order)
    shard[order] = (position + position // shards) % shards
    full = num // (shards * block) * block * shards
    for begin in range(0, full, block):
        assert len(torch.unique(shard[begin : begin + block])) == 1
    rest = (num - full) // shards
    for begin in range(full, full + rest * shards, max(rest, 1)):
        assert len(torch.unique(shard[begin : begin + rest])) == 1
    counts = torch.bincount(shard, minlength=shards)
    assert counts.max() - counts.min() <= 1


def test_blocks_of_one_are_the_order_of_samples() -> None:
    assert window_order(1000, block=1).tolist() == list(range(1000))
    assert torch.equal(window_batches(1000, 64, 3, 1, block=1), epoch_batches(1000, 64, 3, 1))


def test_groups_deal_to_shards_in_turn() -> None:
    # the blocks at the same place of neighbouring groups are in neighbouring shards
    order = window_order(64 * 4 * 3, block=4)
    position = torch.arange(len(order))
    shard = torch.empty_like(order)
    shard[order] = (position + position // 64) % 64
    assert shard.view(3, 64, 4)[:, 10, 0].tolist() == [10, 11, 12]


@given(st.integers(512, 2000), st.sampled_from([8, 64, 96]), st.integers(1, 40), st.integers(0, 99))
def test_ranks_share_the_same_global_batches(
    num: int, batch_size: int, block: int, seed: int
) -> None:
    alone = window_batches(num, batch_size, seed, seed, block=block).sort(dim=1).values
    assert len(torch.unique(alone)) == alone.numel()
    for world in WORLDS:
        shares = [window_batches(num, batch_size, seed, seed, block=block, rank=r, world=world)
                  for r in range(world)]  # fmt: skip
        assert torch.equal(torch.cat(shares, 1).sort(dim=1).values, alone)
        owned = [owned_windows(num, block=block, rank=r, world=world) for r in range(world)]
        assert torch.cat(owned).sort().values.tolist() == list(range(num))
        for share, own in zip(shares, owned, strict=True):
            assert torch.isin(share, own).all()
            assert torch.equal(own, own.sort().values)


def held_and_used(windows: Windows, block: int, world: int) -> tuple[int, int]:
    held = sum(
        len(frames_of(windows, owned_windows(len(windows), block=block, rank=r, world=world)))
        for r in range(world)
    )
    return held, len(torch.unique(windows.index))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("length", "step", "block"), [(4, 1, 8), (8, 2, 16), (16, 1, 3)])
@pytest.mark.parametrize("boundary", Boundary)
def test_full_blocks_hold_few_frames_twice(
    world: int, length: int, step: int, block: int, boundary: Boundary
) -> None:
    reach = (length - 1) * step
    extra = reach if boundary is Boundary.drop else 0
    samples = one_run(64 * block * 2 + extra)
    windows = build(samples, length=length, step=step, boundary=boundary)
    assert len(windows) == 64 * block * 2
    held, used = held_and_used(windows, block, world)
    assert used == len(samples)
    assert used <= held <= used * (1 + reach / block)
    if world == 1:
        assert held == used
    elif boundary is Boundary.drop and reach <= block:
        # the bound is not loose: every border between two ranks costs (length - 1) * step frames
        assert held - used >= reach * (64 * 2 - 2)


@given(
    st.lists(st.integers(1, 90), min_size=8, max_size=40),
    st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 30)),
    st.sampled_from(list(Boundary)),
)
def test_frames_held_twice_are_bounded_by_the_borders(
    run_lengths: list[int], shape: tuple[int, int, int, int], boundary: Boundary
) -> None:
    length, stride, step, block = shape
    samples = [(s, 0, f, 0) for s, run in enumerate(run_lengths) for f in range(run)]
    if boundary is Boundary.drop and max(run_lengths) <= (length - 1) * step:
        return
    windows = build(samples, length=length, stride=stride, step=step, boundary=boundary)
    num, shards = len(windows), num_virtual_shards(len(windows))
    groups, rest = divmod(num, shards * block)
    num_blocks = groups * shards + min(rest, shards) + rest % shards
    for world in WORLDS:
        if shards % world == 0:
            held, used = held_and_used(windows, block, world)
            assert used <= held <= used * (1 + (length - 1) * step * num_blocks / num)


def test_places_in_the_cache_of_a_rank() -> None:
    windows = build(one_run(600), length=4, step=2)
    own = owned_windows(len(windows), block=8, rank=1, world=2)
    frames = frames_of(windows, own)
    assert torch.equal(frames, frames.sort().values)
    places = torch.searchsorted(frames, windows.index[own])
    assert torch.equal(frames[places], windows.index[own])


def test_windows_can_be_mixed() -> None:
    sizes = [700, 300]
    orders = [window_order(size, block=4) for size in sizes]

    def place(batch: Tensor) -> Tensor:
        return torch.where(batch < 700, orders[0][batch % 700], 700 + orders[1][batch % 700 % 300])

    for rank in range(4):
        owned = [owned_windows(size, block=4, rank=rank, world=4) for size in sizes]
        mine = torch.cat([owned[0], owned[1] + 700])
        batch = mixed_batch(sizes, [1.0, 1.0], 64, 0, 5, rank=rank, world=4)
        assert torch.isin(place(batch), mine).all()


@pytest.mark.parametrize(("name", "value"), [("length", 0), ("stride", 0), ("step", -1),
                                             ("frame_stride", -1)])  # fmt: skip
def test_config_refuses(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"window.{name} must be at least .*, got {value}"):
        build(one_run(3), **{name: value})


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"2 samples repeat a frame .*sequence 0, camera 0, "
                       r"frame 6\); this view has no windows, use window.length=1"):  # fmt: skip
        build(one_run(4) + one_run(3)[1:], length=2)
    with pytest.raises(ValueError, match=r"window\.length 3 at window\.step 2 needs runs of 5 "
                       "frames, the longest of 1 has 4"):  # fmt: skip
        build(one_run(4), length=3, step=2)
    with pytest.raises(ValueError, match="needs runs of 2 frames, the longest of 0 has 0"):
        build([], length=2)
    with pytest.raises(ValueError, match="block must be at least 1 window, got 0"):
        window_order(10, block=0)


@given(
    runs=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    length=st.integers(1, 6),
    stride=st.integers(1, 6),
)
def test_every_sample_is_taken_where_it_is_most_central(
    runs: list[int], length: int, stride: int
) -> None:
    stride = min(stride, length)
    sequence = torch.cat([torch.full((num,), k) for k, num in enumerate(runs)])
    frame = torch.cat([torch.arange(num) for num in runs])
    zeros = torch.zeros_like(frame)
    config = WindowConfig(length=length, stride=stride, boundary=Boundary.repeat)
    windows = build_windows(sequence, zeros, frame, zeros, config)
    taken = most_central(windows)
    found: dict[int, int] = {}
    best: dict[int, int] = {}
    for w in range(len(windows)):
        for t in range(length):
            if not windows.is_real[w, t]:
                assert not taken[w, t]
                continue
            sample, central = int(windows.index[w, t]), min(t, length - 1 - t)
            best[sample] = max(best.get(sample, 0), central)
            if taken[w, t]:
                assert sample not in found
                found[sample] = central
    assert found == best
    assert len(found) == len(frame)
