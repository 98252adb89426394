"""``python -m pipeline bench``: throughput of each stage from the store to the batch."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pipeline.app.words import say
from pipeline.config import BenchConfig
from pipeline.loader import Loader, usable_device
from pipeline.store.reader import open_store
from pipeline.view import split_rows

WARM_UP_SHARE = 0.2


def main(config: BenchConfig) -> int:
    """Measure the throughput of each stage from the store to the batch on this machine.

    scan: read the split's JPEGs in store order and verify their crc32c. fill: decode, crop, copy to
    the device, once. batches: order, augmentation, gather, labels, as in training. labels: the same
    without pixels.

    Example:
        python -m pipeline bench store=build/freihand.zarr device=cuda batch_size=256
    """
    pipeline, device = config.pipeline, usable_device(config.device)
    sheet = Table()
    for name in ("stage", "samples/s", "GB/s", "ms per batch"):
        sheet.add_column(name, justify="left" if name == "stage" else "right")

    store = open_store(pipeline.store, reader=pipeline.cache.reader.value)
    rows = split_rows(store, pipeline.split, pipeline.subset)
    rows.sort()
    num_images, num_bytes, seconds = 0, 0, 0.0
    while seconds < config.seconds:
        begin = time.perf_counter()
        for row, jpeg in store.scan(rows):
            store.check(row, jpeg)
            num_bytes += len(jpeg)
            num_images += 1
        seconds += time.perf_counter() - begin
    store.close()
    sheet.add_row("scan", f"{num_images / seconds:.0f}", f"{num_bytes / seconds / 1e9:.2f}", "-")

    begin = time.perf_counter()
    loader = Loader(pipeline, device=device, training=True)
    seconds = time.perf_counter() - begin
    sheet.add_row("fill, with start-up", f"{loader.num_samples / seconds:.0f}", "-", "-")

    batches = iter(loader)
    for name, step in (
        ("batches", lambda: next(batches)),
        ("labels", _cycle(loader.label_batches).__next__),
    ):
        num, size, seconds = _measure(step, device, config.seconds)
        rate = num / seconds
        per_batch = 1000 * seconds / num * pipeline.batch_size
        sheet.add_row(name, f"{rate:.0f}", f"{rate * size / 1e9:.2f}", f"{per_batch:.2f}")
    console = Console()
    say(loader.summary(), console)
    console.print(sheet)
    return 0


def _cycle(batches: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    return itertools.chain.from_iterable(batches() for _ in itertools.count())


def _measure(
    step: Callable[[], Any], device: torch.device, seconds: float
) -> tuple[int, float, float]:
    """Return samples, image bytes per sample, seconds; synchronises before and after."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    until = time.perf_counter() + WARM_UP_SHARE * seconds
    batch = step()
    while time.perf_counter() < until:
        batch = step()
    wait()
    num, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        batch = step()
        num += len(batch.sample_id)
    wait()
    return num, batch.image.nbytes / len(batch.sample_id), time.perf_counter() - begin
