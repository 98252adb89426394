"""Who competes in ``python -m benchmarks loader``: ours, its peers, and limits that nobody beats.

A contender is a function of a ``LoaderInput`` that returns what gives the batches of one epoch.
It is made and run in a process of its own (``serve``), so that no start method, thread pool or
allocator of one is another's.

``uint8``: [64, 256, 256, 3], shuffled. ``train``: float32 [64, 3, 224, 224] after a random turn,
zoom, shift and colour matrix, normalised, shuffled.
"""

import dataclasses
import functools
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.config import BATCH
from benchmarks.loader.peers import (
    AUGMENT,
    FRAME_PX,
    INPUT_PX,
    Epoch,
    LoaderInput,
    Work,
    dataloader,
    decode_cv2,
    decode_simplejpeg,
    input_format,
    orders_of,
    read_bytes,
    spdl,
    train_ready,
    webdataset,
)
from model.geometry.crop import compose, invert
from pipeline.config import (
    AugmentConfig,
    CacheCodec,
    CacheConfig,
    ImageDtype,
    PipelineConfig,
    ViewConfig,
    ViewKind,
)
from pipeline.decode import resident
from pipeline.decode.codec import Codec, Pixels
from pipeline.gather.augment import draw, input_affine
from pipeline.gather.params import gather_params
from pipeline.gather.select import gather
from pipeline.loader import Loader
from pipeline.store.reader import Store, open_store
from pipeline.view import ViewTable, build_view, samples_at, split_rows

CORES: Final = 2
CPU: Final = torch.device("cpu")


# --- ours, and the limits of ours -----------------------------------------------------------------


def _frames(source: LoaderInput) -> tuple[Store, ViewTable]:
    store = open_store(source.store)
    rows = split_rows(store, "all", 1.0)
    view = ViewConfig(kind=ViewKind.frame)
    return store, build_view(store, rows, view, FRAME_PX, training=True)


def _cached(source: LoaderInput) -> tuple[Pixels, ViewTable]:
    store, view = _frames(source)
    cache = CacheConfig(size_px=FRAME_PX, decode_threads=source.workers)
    held = resident.fill([(store, view)], cache, Codec.rgb, CPU)
    store.close()
    return held.pixels, view


def bytes_loader(codec: CacheCodec, source: LoaderInput) -> Epoch:
    """Return the loader without augmentation, frames as they are, with its labels.

    Beside a consumer that keeps one core busy, the other one makes the next batch.
    """
    config = PipelineConfig(
        store=source.store,
        split="all",
        batch_size=BATCH,
        seed=source.seed,
        input_px=FRAME_PX,
        image_dtype=ImageDtype.uint8,
        channels_last=True,
        view=ViewConfig(kind=ViewKind.frame),
        cache=CacheConfig(size_px=FRAME_PX, decode_threads=source.workers, codec=codec),
        read_ahead=int(source.workers < CORES),
        augment=AugmentConfig(
            rotation_deg=0, scale=0, shift=0, gain=0, brightness=0, contrast=0, saturation=0
        ),
    )
    batches = iter(loader := Loader(config, device=CPU))  # endless: a stream goes on
    steps = len(loader)
    return lambda: (b.image.movedim(1, -1) for b in itertools.islice(batches, steps))


def preallocated_copy(source: LoaderInput) -> Epoch:
    """Return rows in a fixed order, copied to one buffer: the memory's limit."""
    pixels = _cached(source)[0].rgb
    assert pixels is not None
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(source.seed))
    indices = [i for i in torch.split(order, BATCH) if len(i) == BATCH]
    batch = torch.empty(BATCH, *pixels.shape[1:], dtype=pixels.dtype)
    return lambda: (torch.index_select(pixels, 0, index, out=batch) for index in indices)


def train_loader(source: LoaderInput) -> Epoch:
    """Return the loader in training, with its labels."""
    config = PipelineConfig(
        store=source.store,
        split="all",
        batch_size=BATCH,
        seed=source.seed,
        input_px=INPUT_PX,
        read_ahead=int(source.workers < CORES),
        view=ViewConfig(kind=ViewKind.frame),
        cache=CacheConfig(size_px=FRAME_PX, decode_threads=source.workers),
        augment=AUGMENT,
    )
    loader = Loader(config, device=CPU)
    epochs = itertools.count()
    return lambda: (batch.image for batch in loader.epoch(next(epochs)))


def gather_alone(source: LoaderInput) -> Epoch:
    """Return the gather of prepared indices and parameters: the limit of the loader around it."""
    pixels, everything = _cached(source)
    none = torch.zeros(BATCH, dtype=torch.bool)
    prepared = []
    for index in next(orders_of(len(everything), source.seed)):
        view = samples_at(everything, index)
        params = draw(AUGMENT, source.seed, 0, view.sample_id)
        A = input_affine(params, view.center_px, view.size_px, none, INPUT_PX)
        A_cache_from_input = compose(view.A_cache_from_frame, invert(A))
        prepared.append((index, gather_params(A_cache_from_input, params, INPUT_PX)))
    form = input_format(INPUT_PX)
    batch = torch.empty(BATCH, 3, INPUT_PX, INPUT_PX)
    return lambda: (gather(pixels, *both, form, out=batch) for both in prepared)


def bare_dali(source: LoaderInput) -> Epoch:
    """Return what DALI decodes from bytes in memory: the limit of a stream."""
    from nvidia.dali import Pipeline, fn, types

    encoded = [np.frombuffer(read_bytes(path), np.uint8) for path in source.files]
    order = (index for order in orders_of(len(encoded), source.seed) for index in order)
    pipe = Pipeline(
        batch_size=BATCH,
        num_threads=source.workers,
        device_id=None,
        prefetch_queue_depth=2,
    )
    with pipe:
        jpegs = fn.external_source(
            source=([encoded[i] for i in index.tolist()] for index in order),
            batch=True,
            no_copy=True,
            dtype=types.UINT8,
            ndim=1,
        )
        images = fn.decoders.image(  # as in pipeline.decode.graph
            jpegs,
            device="cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        pipe.set_outputs(images)
    pipe.build()
    steps = range(len(encoded) // BATCH)
    return lambda: (torch.from_dlpack(pipe.run()[0].as_tensor()) for _ in steps)


def work_alone(work: Work, source: LoaderInput) -> Epoch:
    """Return the work on bytes in memory, in threads, into one buffer: the limit of decoders."""
    encoded = [read_bytes(path) for path in source.files]
    first = torch.from_numpy(work(encoded[0]))
    batch = torch.empty(BATCH, *first.shape, dtype=first.dtype)
    pool, slots = ThreadPoolExecutor(source.workers), batch.numpy()

    def fill(begin: int, worker: int) -> None:
        for slot in range(worker, BATCH, source.workers):
            slots[slot] = work(encoded[begin + slot])

    def step(begin: int) -> Tensor:
        deque(pool.map(functools.partial(fill, begin), range(source.workers)), maxlen=0)
        return batch

    return lambda: (step(i) for i in range(0, len(encoded) - BATCH + 1, BATCH))


# --- the register ---------------------------------------------------------------------------------

_CV2_TRAIN: Final = functools.partial(train_ready, decode_cv2)
_SIMPLEJPEG_TRAIN: Final = functools.partial(train_ready, decode_simplejpeg)
COPY: Final = "limit: index_select(out=)"
DALI: Final = "limit: bare DALI decode"
DECODE: Final = "limit: simplejpeg in threads"
GATHER: Final = "limit: our gather alone"
WORK: Final = "limit: the work in threads"
RESIDENT: Final = "ours, resident Loader"
STREAM: Final = "ours, stream Loader"
LOADER: Final = RESIDENT


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table."""

    make: Callable[[LoaderInput], Epoch]
    limit: str
    """Contender whose rate this one cannot pass."""


UINT8: Final = {
    RESIDENT: Contender(functools.partial(bytes_loader, CacheCodec.rgb), COPY),
    COPY: Contender(preallocated_copy, COPY),
    STREAM: Contender(functools.partial(bytes_loader, CacheCodec.stream), DALI),
    DALI: Contender(bare_dali, DALI),
    "DataLoader, cv2": Contender(functools.partial(dataloader, decode_cv2), DECODE),
    "DataLoader, simplejpeg": Contender(functools.partial(dataloader, decode_simplejpeg), DECODE),
    "WebDataset, simplejpeg": Contender(functools.partial(webdataset, decode_simplejpeg), DECODE),
    "SPDL, simplejpeg": Contender(functools.partial(spdl, decode_simplejpeg), DECODE),
    DECODE: Contender(functools.partial(work_alone, decode_simplejpeg), DECODE),
}
TRAIN: Final = {
    LOADER: Contender(train_loader, GATHER),
    GATHER: Contender(gather_alone, GATHER),
    "DataLoader, cv2": Contender(functools.partial(dataloader, _CV2_TRAIN), WORK),
    "DataLoader, simplejpeg": Contender(functools.partial(dataloader, _SIMPLEJPEG_TRAIN), WORK),
    "WebDataset, simplejpeg": Contender(functools.partial(webdataset, _SIMPLEJPEG_TRAIN), WORK),
    "SPDL, simplejpeg": Contender(functools.partial(spdl, _SIMPLEJPEG_TRAIN), WORK),
    WORK: Contender(functools.partial(work_alone, _SIMPLEJPEG_TRAIN), WORK),
}
CONTRACTS: Final = {"uint8": UINT8, "train": TRAIN}
NOT_MEASURED: Final = {
    "FFCV, raw": "its wheel is built on the spot and wants OpenCV and libturbojpeg by pkg-config; "
    "built by hand once: 59 k images/s beside 86 to 106 k of index_select(out=)",
    "SPDL, its own decoder": "spdl-io wants the system's FFmpeg libraries (libavutil)",
}
"""Loaders that are not measured, with the reason."""


# --- the process ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """Result of the first epoch."""

    samples: int
    seconds: float
    """Time of set-up and first epoch, without imports, seconds."""
    channel_mean: tuple[float, ...]


def serve(connection: Connection, contract: str, name: str, source: LoaderInput) -> None:
    """Create a contender, send ``Ready`` or an error, then serve requests until None.

    Request ``None`` ends the process; for ``(steps, skipped, busy_s)`` it sends the pairs (seconds
    waited, total seconds) of that many steps of a consumer that is busy ``busy_s`` in each; any
    other request runs one epoch and sends its number of samples.
    """
    try:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        torch.set_num_threads(CORES)  # as torch itself would
        cv2.setNumThreads(0)
        begin = time.perf_counter()
        epoch = CONTRACTS[contract][name].make(source)
        ready = _first_epoch(contract, epoch())
        ready = dataclasses.replace(ready, seconds=time.perf_counter() - begin)
    except Exception as error:  # a peer may fail in any way; the others continue
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(ready)
    endless = itertools.chain.from_iterable(epoch() for _ in itertools.count())
    while (request := connection.recv()) is not None:
        if isinstance(request, tuple):
            steps, skipped, busy_s = request
            waits = [_step(endless, busy_s) for _ in range(skipped + steps)]
            connection.send(waits[skipped:])
        else:
            connection.send(sum(len(batch) for batch in epoch()))


def _step(batches: Iterator[Tensor], busy_s: float) -> tuple[float, float]:
    begin = time.perf_counter()
    next(batches)
    got = time.perf_counter()
    while time.perf_counter() < got + busy_s:
        pass
    return got - begin, time.perf_counter() - begin


def _first_epoch(contract: str, batches: Iterator[Tensor]) -> Ready:
    """Run one epoch and check its batches against the contract."""
    shape, dtype = {
        "uint8": ((FRAME_PX, FRAME_PX, 3), torch.uint8),
        "train": ((3, INPUT_PX, INPUT_PX), torch.float32),
    }[contract]
    samples, total = 0, torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        if batch.shape[1:] != shape or batch.dtype != dtype or not batch.is_contiguous():
            raise RuntimeError(f"gave {tuple(batch.shape)} {batch.dtype}, not {shape} {dtype}")
        planes = batch.movedim(-1, 1) if contract == "uint8" else batch
        samples += len(batch)
        total += len(batch) * planes[..., ::8, ::8].double().mean((0, 2, 3))
    mean = tuple((total / samples).tolist())
    return Ready(samples=samples, seconds=0.0, channel_mean=mean)


def source_of(folder: Path, num: int, seed: int, workers: int) -> LoaderInput:
    """Return the images that ``benchmarks.loader.run`` keeps in ``folder``."""
    return LoaderInput(
        files=tuple(str(folder / "files" / f"{i:06}.jpg") for i in range(num)),
        tars=tuple(sorted(str(path) for path in (folder / "tars").glob("*.tar"))),
        store=str(folder / "store.zarr"),
        seed=seed,
        workers=workers,
    )
