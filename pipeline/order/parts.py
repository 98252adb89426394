"""Samples of a run, their order, and those held by each rank.

Shape legend: n = samples of a view, i = items, t = frames of an item, b = items of a rank's batch.

One or several stores, each restricted to a split, a subset and a view, and, for temporal models,
cut into windows: an **item** is a window, or one sample. Items are numbered through the
concatenated stores. Batches of items are a pure function of (seed, epoch) for one store
(``pipeline.order.epoch``), of (seed, step) for a mixture (``pipeline.order.mix``); the rest is
index arithmetic.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from model.hand import NUM_HANDS, JointSet
from pipeline.config import MixPart, PipelineConfig
from pipeline.decode.source import describe_row
from pipeline.order.epoch import check_batch_size, epoch_batches, steps_per_epoch
from pipeline.order.mix import mixed_batch, num_owner_classes
from pipeline.order.windows import (
    DEFAULT_BLOCK,
    Windows,
    build_windows,
    frames_of,
    owned_windows,
    window_order,
)
from pipeline.store.reader import Store, open_store, read_attributes
from pipeline.view import ViewTable, build_view, samples_at, split_rows

STORE_STRIDE: Final = 1 << 40
"""Sample ids of the k-th store of a mixture start at k times this."""
FIRST: Final = "store"
"""Name of a store outside of ``mix``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One store of a run."""

    name: str
    store: Store
    view: ViewTable
    """Every sample of the split and view, on any rank; rows of this store."""
    windows: Windows
    weight: float

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.windows)

    @property
    def joint_set(self) -> JointSet:
        """Joint convention of the store."""
        return JointSet[self.store.attributes.joint_set]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Batches of items as a pure function of (epoch, step)."""

    sizes: tuple[int, ...]
    """Items of each store."""
    weights: tuple[float, ...]
    batch_size: int
    seed: int
    block: int
    """Neighbouring items that stay on one rank."""
    rank: int
    world: int

    @property
    def is_mixture(self) -> bool:
        """Whether there are several stores."""
        return len(self.sizes) > 1

    def check(self) -> None:
        """Reject sizes that give no batch or do not divide among the ranks.

        Raises:
            ValueError: States what fits.
        """
        if self.is_mixture:
            num_owner_classes(self.sizes, self.batch_size, world=self.world)
        check_batch_size(sum(self.sizes), self.batch_size, world=self.world)

    def steps_per_epoch(self) -> int:
        """Return the batches of an epoch; for a mixture, as many as would hold all its items."""
        if self.is_mixture:
            return sum(self.sizes) // self.batch_size
        return steps_per_epoch(self.sizes[0], self.batch_size)

    def draw_number(self, epoch: int, step: int) -> int:
        """Return the counter that seeds the augmentation: the epoch, in a mixture the run's step.

        A small store of a mixture repeats more often than the mixture's epoch.
        """
        return epoch * self.steps_per_epoch() + step if self.is_mixture else epoch

    def batches(self, epoch: int, first_step: int) -> Iterator[Int64[Tensor, " b"]]:
        """Yield this rank's items of every batch of an epoch from ``first_step`` on."""
        item_at, who = _item_at(self.sizes, self.block), {"rank": self.rank, "world": self.world}
        if not self.is_mixture:
            drawn = epoch_batches(self.sizes[0], self.batch_size, self.seed, epoch, **who)
            yield from item_at[drawn[first_step:]]
            return
        for step in range(first_step, self.steps_per_epoch()):
            number = self.draw_number(epoch, step)
            share = mixed_batch(self.sizes, self.weights, self.batch_size, self.seed, number, **who)
            yield item_at[share]

    def share(self) -> Int64[Tensor, " m"]:
        """Return this rank's part of a single ordered pass over all items, in contiguous blocks."""
        return torch.arange(sum(self.sizes)).tensor_split(self.world)[self.rank]

    def owned(self) -> Int64[Tensor, " m"]:
        """Return the items that this rank ever sees in training, ascending.

        Raises:
            ValueError: If the ranks do not divide the virtual shards.
        """
        who = {"block": self.block, "rank": self.rank, "world": self.world}
        starts = itertools.accumulate(self.sizes, initial=0)
        return torch.cat(
            [
                owned_windows(size, **who) + start
                for size, start in zip(self.sizes, starts, strict=False)
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSamples:
    """What one rank holds: the samples of its items, and where each item's frames are in them."""

    views: tuple[ViewTable, ...]
    """Samples of each store, ascending by view position."""
    place: Int64[Tensor, "i t"]
    """Position in the concatenated views; -1 where another rank has the item."""
    is_real: Bool[Tensor, "i t"]
    items: Int64[Tensor, " m"]
    """This rank's items, ascending."""


def open_parts(config: PipelineConfig, stack: ExitStack, *, training: bool) -> tuple[Part, ...]:
    """Open the stores of a configuration; ``stack`` closes them.

    Raises:
        ValueError: If configuration and store are incompatible.
        StoreError: If a store cannot be read.
    """
    first = MixPart(
        store=config.store, split=config.split, subset=config.subset, weight=config.weight
    )
    parts = []
    for number, (name, how) in enumerate({FIRST: first, **config.mix}.items()):
        store = open_store(how.store, reader=config.cache.reader.value)
        stack.callback(store.close)
        if config.window.length > 1 and how.subset < 1 and not config.window.frame_stride:
            raise ValueError(
                f"subset={how.subset:g} leaves out frames, so that neighbours in a window of "
                f"{config.window.length} would be frames apart; use subset=1 and a larger "
                "window.stride, or say how far apart they are to be with window.frame_stride"
            )
        rows = split_rows(store, how.split, how.subset)
        view = build_view(store, rows, config.view, config.cache.size_px, training=training)
        row, slot = view.row.numpy(), view.sample_id % NUM_HANDS
        sequence, camera, frame = (
            torch.from_numpy(store.label(f"{column}_idx")[row].astype(np.int64))
            for column in ("sequence", "camera", "frame")
        )
        windows = build_windows(sequence, camera, frame, slot, config.window)
        view = dataclasses.replace(view, sample_id=view.sample_id + number * STORE_STRIDE)
        parts.append(Part(name=name, store=store, view=view, windows=windows, weight=how.weight))
    return tuple(parts)


def order_of(
    parts: tuple[Part, ...], config: PipelineConfig, *, rank: int = 0, world: int = 1
) -> Order:
    """Return the order of a run's items."""
    return Order(
        sizes=tuple(len(part) for part in parts),
        weights=tuple(part.weight for part in parts),
        batch_size=config.batch_size,
        seed=config.seed,
        block=1 if config.window.length == 1 else DEFAULT_BLOCK,
        rank=rank,
        world=world,
    )


def rank_samples(items: Int64[Tensor, " m"], parts: tuple[Part, ...]) -> RankSamples:
    """Return what a rank with these items holds; frames that its windows share are held once."""
    place = torch.cat([torch.full_like(part.windows.index, -1) for part in parts])
    is_real = torch.cat([part.windows.is_real for part in parts])
    views, num_samples, start = [], 0, 0
    for part in parts:
        mine = items[(items >= start) & (items < start + len(part))] - start
        samples = frames_of(part.windows, mine)
        where = torch.searchsorted(samples, part.windows.index[mine])
        place[start + mine] = where + num_samples
        views.append(samples_at(part.view, samples))
        num_samples += len(samples)
        start += len(part)
    return RankSamples(views=tuple(views), place=place, is_real=is_real, items=items)


def describe_sample(parts: tuple[Part, ...], sample_id: int) -> str:
    """Describe a sample for a person: where to find it.

    Raises:
        ValueError: If no store of the run has it.
    """
    number, within = divmod(sample_id, STORE_STRIDE)
    if number >= len(parts) or within // NUM_HANDS >= parts[number].store.num_rows:
        raise ValueError(f"no store of this run has a sample {sample_id}")
    return describe_row(parts[number].store, parts[number].view, within // NUM_HANDS)


def joint_sets_of(config: PipelineConfig) -> frozenset[JointSet]:
    """Return the joint conventions of a configuration's stores, without opening them.

    Raises:
        StoreError: If there is no store.
    """
    paths = [config.store, *(part.store for part in config.mix.values())]
    return frozenset(JointSet[read_attributes(Path(path)).joint_set] for path in paths)


def content_of(parts: tuple[Part, ...]) -> str:
    """Return the content hash of the store, or one of all stores of a mixture."""
    hashes = [part.store.attributes.content_sha256 for part in parts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def names_of(config: PipelineConfig) -> str:
    """Return the stores of a run in words."""
    more = [f"{Path(how.store)} split={how.split}" for how in config.mix.values()]
    return " + ".join([f"{Path(config.store)} split={config.split}", *more])


@lru_cache(maxsize=4)
def _item_at(sizes: tuple[int, ...], block: int) -> Int64[Tensor, " i"]:
    """Return the item at every position of the order; read-only, it is cached."""
    starts = itertools.accumulate(sizes, initial=0)
    return torch.cat(
        [
            window_order(size, block=block) + start
            for size, start in zip(sizes, starts, strict=False)
        ]
    )
