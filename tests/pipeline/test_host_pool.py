from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.host_pool import MOST_KEPT, HostPool


def test_memory_comes_back_when_nobody_holds_it() -> None:
    pool = HostPool()
    first = pool.empty((4, 5), torch.float32)
    place = first.data_ptr()
    second = pool.empty((4, 5), torch.float32)
    assert second.data_ptr() != place
    del first
    assert pool.empty((4, 5), torch.float32).data_ptr() == place


def test_views_and_arrays_hold_the_memory() -> None:
    pool = HostPool()
    holds: tuple[Callable[[Tensor], Any], ...] = (
        lambda t: t[1:, :2],
        lambda t: t.numpy(),
        lambda t: t.view(torch.uint8).T,
    )
    for hold in holds:
        whole = pool.empty((4, 4), torch.float32)
        whole.fill_(7)
        part, place = hold(whole), whole.data_ptr()
        del whole
        other = pool.empty((4, 4), torch.float32)
        assert other.data_ptr() != place
        other.zero_()
        assert (torch.as_tensor(part).contiguous().view(torch.uint8) != 0).any()
        del part, other


def test_smaller_batches_of_any_type_fit_a_block() -> None:
    pool = HostPool()
    place = pool.empty((8, 3), torch.float32).data_ptr()
    small = pool.empty((2, 3), torch.bfloat16)
    assert small.data_ptr() == place
    assert small.shape == (2, 3)
    assert small.dtype is torch.bfloat16
    assert small.is_contiguous()
    del small
    assert pool.empty((9, 3), torch.float32).data_ptr() != place


def test_a_caller_who_keeps_everything_gets_fresh_memory() -> None:
    pool = HostPool()
    kept = [pool.empty((16,), torch.uint8) for _ in range(MOST_KEPT + 3)]
    assert len({t.data_ptr() for t in kept}) == len(kept)
    assert len(pool._blocks) == MOST_KEPT
