import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tests.strategies  # noqa: F401  (loads the hypothesis profile)
from pipeline.order.epoch import epoch_batches, num_virtual_shards, owned_samples, steps_per_epoch

WORLDS = (1, 2, 4, 8)
SEED = st.integers(0, 2**63 - 1)
EPOCH = st.integers(0, 2**20)
GOLDEN_SMALL = [[6, 9, 5], [4, 7, 8], [0, 3, 2]]
GOLDEN_LARGE = [116, 123, 39, 61, 22, 44, 35, 117, 79, 25, 122, 23]


def shard_of(sample: Tensor, num_samples: int) -> Tensor:
    """The rule of the module, written again."""
    num_shards = num_virtual_shards(num_samples)
    return (sample % num_shards + sample // num_shards) % num_shards


def test_golden_order() -> None:
    # Any change of the order breaks this test, and with it the resumption of every run made so far.
    # Only update the values if you know what you're doing.
    assert epoch_batches(10, 3, seed=42, epoch=0).tolist() == GOLDEN_SMALL
    assert epoch_batches(130, 64, seed=7, epoch=3)[1, :12].tolist() == GOLDEN_LARGE


@given(st.integers(1, 700), st.integers(1, 200), SEED, EPOCH)
def test_every_sample_at_most_once(num: int, batch_size: int, seed: int, epoch: int) -> None:
    num_shards = num_virtual_shards(num)
    whole = num // num_shards * num_shards
    if batch_size > whole:
        with pytest.raises(ValueError, match=f"at most {whole} for {num} samples"):
            epoch_batches(num, batch_size, seed, epoch)
        return
    batches = epoch_batches(num, batch_size, seed, epoch)
    assert batches.shape == (whole // batch_size, batch_size)
    assert len(batches) == steps_per_epoch(num, batch_size)
    seen = batches.flatten()
    assert len(torch.unique(seen)) == len(seen)
    assert torch.isin(seen, torch.arange(num)).all()


@given(st.integers(512, 2000), st.sampled_from([8, 16, 64, 96, 128]), SEED, EPOCH)
def test_ranks_share_the_same_global_batches(
    num: int, batch_size: int, seed: int, epoch: int
) -> None:
    alone = epoch_batches(num, batch_size, seed, epoch).sort(dim=1).values
    for world in WORLDS:
        shares = [epoch_batches(num, batch_size, seed, epoch, rank=r, world=world)
                  for r in range(world)]  # fmt: skip
        assert all(share.shape == (len(alone), batch_size // world) for share in shares)
        assert torch.equal(torch.cat(shares, 1).sort(dim=1).values, alone)
        for rank, share in enumerate(shares):
            owned = owned_samples(num, rank=rank, world=world)
            assert torch.isin(share, owned).all()
            assert (shard_of(share, num) % world == rank).all()


@pytest.mark.parametrize("num", [512, 513, 575, 1000])
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_own_every_sample_once(num: int, world: int) -> None:
    shares = [owned_samples(num, rank=r, world=world) for r in range(world)]
    assert torch.cat(shares).sort().values.tolist() == list(range(num))
    # every shard has num // 64 members or one more, and a rank 64 / world shards
    assert max(map(len, shares)) - min(map(len, shares)) <= 64 // world


@pytest.mark.parametrize("batch_size", [64, 128, 192])
def test_a_batch_holds_the_same_number_of_every_shard(batch_size: int) -> None:
    for batch in epoch_batches(1000, batch_size, seed=1, epoch=1):
        counts = torch.bincount(shard_of(batch, 1000), minlength=64)
        assert (counts == batch_size // 64).all()


@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_a_small_batch_visits_shards_in_turn(batch_size: int) -> None:
    batches = epoch_batches(1000, batch_size, seed=1, epoch=1)
    in_turn = shard_of(batches[: 64 // batch_size].flatten(), 1000)
    assert in_turn.sort().values.tolist() == list(range(64))


def test_whole_batches_lose_nothing_to_the_shards() -> None:
    for num in (512, 999, 32560):
        assert steps_per_epoch(num, 64) == num // 64


def test_all_samples_come_up_over_a_few_epochs() -> None:
    seen = torch.cat([epoch_batches(130, 64, 0, epoch).flatten() for epoch in range(20)])
    assert len(torch.unique(seen)) == 130


def test_epoch_and_seed_change_the_order() -> None:
    orders = {tuple(epoch_batches(600, 64, seed, epoch).flatten().tolist())
              for seed in (0, 1) for epoch in (0, 1)}  # fmt: skip
    assert len(orders) == 4


def test_neighbours_are_spread() -> None:
    # alternating right and left hands: every shard of a large set has both
    shard = shard_of(torch.arange(64 * 64), 64 * 64)
    for hand in (0, 1):
        assert len(torch.unique(shard[hand::2])) == 64


@pytest.mark.parametrize(("num", "expected"), [(1, 1), (15, 1), (16, 2), (100, 8), (511, 32),
                                               (512, 64), (10**6, 64)])  # fmt: skip
def test_small_sets_have_fewer_shards(num: int, expected: int) -> None:
    assert num_virtual_shards(num) == expected


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="multiple of the 4 ranks, got 30"):
        epoch_batches(1000, 30, 0, 0, rank=0, world=4)
    with pytest.raises(ValueError, match="must divide the 64 virtual shards, got 3"):
        epoch_batches(1000, 30, 0, 0, rank=0, world=3)
    with pytest.raises(ValueError, match="must divide the 64 virtual shards, got 0"):
        owned_samples(1000, rank=0, world=0)
    with pytest.raises(ValueError, match=r"rank must lie in 0\.\.1, got 2"):
        owned_samples(1000, rank=2, world=2)
