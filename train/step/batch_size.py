"""batch_size=auto: the most samples whose training step fits into the device's memory."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from model.network import Network
from pipeline import memory
from pipeline.memory import GIB
from pipeline.order.parts import open_parts, order_of
from train.config import RunConfig
from train.device.distributed import Ranks, all_gather
from train.step.out_of_memory import NoMemoryError
from train.step.peak import as_before, peak_of

SHARE: Final = 0.9
"""Of the device's memory that a step may take."""
FRAMES: Final = 8
"""Batches of a rank are a multiple of so many frames: what matrix units like."""
MOST_FRAMES: Final = 8192
"""Of a rank: more make no step faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A batch size and what its step takes."""

    size: int
    bytes: int


def resolve_batch_size(config: RunConfig, model: Network, ranks: Ranks) -> tuple[RunConfig, str]:
    """Return the configuration with the batch size that fits on every rank, and a line about it.

    The model is afterwards what it was.

    Raises:
        ValueError: If not even the smallest batch fits.
    """
    device = next(model.parameters()).device
    limit = int(SHARE * memory.available_bytes(device))
    length, world = config.pipeline.window.length, ranks.world
    most = max(1, min(_most_samples(config) // world, MOST_FRAMES // length))
    unit = min(most, max(1, FRAMES // length))

    def peak(size: int) -> int | None:
        try:
            need = peak_of(model, _with_size(config, size * world), world=world)
        except NoMemoryError:
            return None
        return need.bytes if need.accumulate == config.accumulate else None

    with as_before(model):
        found = largest_fitting(peak, limit=limit, unit=unit, most=most)
    of_ranks = [one for one in all_gather(found, ranks) if one is not None]
    free = f"{limit / GIB:.2f} GiB, {SHARE:.0%} of what is free on {device}"
    if len(of_ranks) < world:
        raise ValueError(
            f"batch_size=auto: the step of {unit * world} samples does not fit into {free}; raise "
            "accumulate or model.checkpoint_activations, or use a smaller pipeline.input_px or "
            "model.backbone"
        )
    size = min(one.size for one in of_ranks)
    taken = max(one.bytes for one in of_ranks if one.size == size)
    line = f"batch_size=auto: {size * world}, whose step takes {taken / GIB:.2f} of {free}"
    return _with_size(config, size * world), line


def largest_fitting(
    peak: Callable[[int], int | None], *, limit: int, unit: int, most: int
) -> Found | None:
    """Return the largest multiple of ``unit`` that fits; None if not even ``unit`` does.

    As long as everything fits, the next size is where a line through the last two says that the
    limit is reached, so that little is tried beyond it; then the gap is halved.

    Args:
        peak: Bytes that a size takes, growing with it; None where the memory ran out.
        limit: Bytes that there are.
        unit: Of the sizes.
        most: Largest size.
    """
    fitting: list[Found] = []
    low, high, is_tried = 0, most // unit + 1, False
    while high - low > 1:
        units = (low + high) // 2 if is_tried else min(high - 1, _next(fitting, limit, unit))
        taken = peak(units * unit)
        if taken is not None and taken <= limit:
            fitting.append(Found(size=units * unit, bytes=taken))
            low = units
        else:
            high, is_tried = units, True
    return fitting[-1] if fitting else None


def _next(fitting: list[Found], limit: int, unit: int) -> int:
    """Return the next number of units to try, more than the last that fits."""
    if len(fitting) < 2:
        return len(fitting) + 1
    first, last = fitting[-2:]
    slope = max(1.0, (last.bytes - first.bytes) / (last.size - first.size))
    return last.size // unit + max(1, int((limit - last.bytes) / slope / unit))


def _most_samples(config: RunConfig) -> int:
    """Return the largest batch that the stores give."""
    with ExitStack() as stack:
        order = order_of(open_parts(config.pipeline, stack, training=True), config.pipeline)
        return replace(order, batch_size=1).steps_per_epoch()


def _with_size(config: RunConfig, batch_size: int) -> RunConfig:
    return replace(config, pipeline=replace(config.pipeline, batch_size=batch_size))
