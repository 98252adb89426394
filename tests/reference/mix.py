"""Order of a mixture, sample by sample, as a slow loop over exact fractions."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from pipeline.order.epoch import epoch_batches, num_virtual_shards


def mixed_batches(
    sizes: list[int], weights: list[float], batch_size: int, seeds: list[int], classes: int
) -> Iterator[np.ndarray]:
    """Yield an array [set, class] of lists: the samples that each class gives of each dataset."""
    sets = range(len(sizes))
    fractions = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    given = np.zeros((len(sizes), classes), dtype=int)
    streams = [[endless(size, seed, classes, c) for c in range(classes)]
               for size, seed in zip(sizes, seeds, strict=True)]  # fmt: skip
    step = 0
    while True:
        step += 1
        owed = [fractions[d] * batch_size * step - given[d].sum() for d in sets]
        counts = [math.floor(fractions[d] * batch_size) for d in sets]
        remainders = [owed[d] - counts[d] for d in sets]
        for _ in range(batch_size - sum(counts)):
            largest = max(sets, key=lambda d: (remainders[d], -d))
            counts[largest] += 1
            remainders[largest] = Fraction(-(10**9))  # at most one in a batch
        now = np.zeros_like(given)
        for d in sets:
            now[d] = counts[d] // classes
        past = given + now
        for d in sorted(sets, key=lambda d: (past[d].min() - past[d].max(), d)):
            passed_over: set[int] = set()
            for _ in range(counts[d] % classes):
                free = [c for c in range(classes) if now[:, c].sum() < batch_size // classes]
                if not set(free) - passed_over:
                    passed_over = set()
                chosen = min(
                    set(free) - passed_over,
                    key=lambda c: (given[d, c] + now[d, c], now[:, c].sum(), c),
                )
                # those chosen in one round are chosen by the state at its beginning
                passed_over.add(chosen)
                now[d, chosen] += 1
        given += now
        batch = np.empty((len(sizes), classes), dtype=object)
        for d in sets:
            for c in range(classes):
                batch[d, c] = [next(streams[d][c]) for _ in range(now[d, c])]
        yield batch


def endless(size: int, seed: int, classes: int, number: int) -> Iterator[int]:
    """Yield the samples of one class of a dataset, epoch after epoch."""
    shards, epoch = num_virtual_shards(size), 0
    while True:
        for sample in epoch_batches(size, shards, seed, epoch).flatten().tolist():
            if (sample + sample // shards) % shards % classes == number:
                yield sample
        epoch += 1
