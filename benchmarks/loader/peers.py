"""Competing loaders of ``python -m benchmarks loader``.

Each uses the settings that its documentation recommends: persistent workers, prefetched batches, no
OpenCV threads inside workers. The per-sample work uses the fastest implementation found.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.config import BATCH
from pipeline.config import AugmentConfig, PipelineConfig
from pipeline.gather.params import InputFormat
from pipeline.order.epoch import epoch_batches

FRAME_PX: Final = 256
INPUT_PX: Final = 224
PREFETCH: Final = 4
"""Prefetched batches per worker."""
SHUFFLED_AHEAD: Final = 1000
"""Samples in WebDataset's shuffle buffer."""
START: Final = "fork"
"""torch's default on Linux; set explicitly, since a child of a forkserver would inherit its own."""
AUGMENT: Final = AugmentConfig()

Picture = NDArray[np.uint8]
Decode = Callable[[bytes], Picture]
Work = Callable[[bytes], NDArray[Any]]
"""Function from a file's bytes to a sample."""
Epoch = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderInput:
    """The images and what may be used to load them."""

    files: tuple[str, ...]
    tars: tuple[str, ...]
    store: str
    seed: int
    workers: int
    """Number of loading threads or processes."""


# --- the work on a sample -------------------------------------------------------------------------


def decode_cv2(encoded: bytes) -> Picture:
    """Decode with OpenCV."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    assert picture is not None
    return picture.astype(np.uint8, copy=False)


def decode_simplejpeg(encoded: bytes) -> Picture:
    """Decode with libjpeg-turbo."""
    import simplejpeg

    picture: Picture = simplejpeg.decode_jpeg(encoded)
    return picture


def train_ready(decode: Decode, encoded: bytes) -> NDArray[np.float32]:
    """Decode, warp, recolour, normalise; ranges as in ``AugmentConfig``."""
    a = AUGMENT
    u = _rng(os.getpid()).uniform(-1, 1, 10)
    turn, side = math.radians(a.rotation_deg) * u[0], (1 + a.scale * u[1]) * FRAME_PX / INPUT_PX
    linear = side * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    centre = (FRAME_PX - 1) / 2 + a.shift * FRAME_PX * u[2:4]
    A = np.column_stack((linear, centre - linear @ np.full(2, (INPUT_PX - 1) / 2)))
    warped = cv2.warpAffine(
        decode(encoded),
        A,
        (INPUT_PX, INPUT_PX),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    gain = (1 + a.gain * u[4:7]) * (1 + a.brightness * u[7])
    contrast, saturation = 1 + a.contrast * u[8], 1 + a.saturation * u[9]
    luma = np.array([0.299, 0.587, 0.114])
    M = contrast * (saturation * np.eye(3) + (1 - saturation) * luma) * gain
    # Colour and normalisation are one matrix; the clamp to 0..255 comes after both.
    scale, black, white = (np.array(part)[:, None] for part in _LEVELS)
    planes = (scale * M).astype(np.float32) @ warped.reshape(-1, 3).astype(np.float32).T
    planes += (scale * (1 - contrast) * 127.5 + black).astype(np.float32)
    np.clip(planes, black.astype(np.float32), white.astype(np.float32), out=planes)
    ready: NDArray[np.float32] = planes.reshape(3, INPUT_PX, INPUT_PX)
    return ready


def input_format(size_px: int) -> InputFormat:
    """Return the default normalisation to float32."""
    default = PipelineConfig(store="")
    mean, std = default.mean, default.std
    return InputFormat(
        size_px=size_px,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        dtype=torch.float32,
    )


_LEVELS: Final = tuple(zip(*input_format(INPUT_PX).scale_black_white(), strict=True))


@functools.cache
def _rng(process: int) -> np.random.Generator:
    """Return the process's own generator: forked workers would share one state."""
    return np.random.default_rng(process)


def read_bytes(path: str) -> bytes:
    """Return a file's bytes."""
    with open(path, "rb") as file:  # noqa: PTH123 - a fifth faster, and this is measured
        return file.read()


def orders_of(num: int, seed: int) -> Iterator[list[Tensor]]:
    """Yield the indices of the batches of each epoch, in the pipeline's order."""
    return (list(epoch_batches(num, BATCH, seed, epoch)) for epoch in itertools.count())


# --- loaders --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Files(Dataset[NDArray[Any]]):
    """JPEG files on the disk."""

    paths: Sequence[str]
    work: Work

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.work(read_bytes(self.paths[index]))


def _processes(source: LoaderInput) -> dict[str, Any]:
    """Return how torch's loaders start their workers."""
    return {
        "num_workers": source.workers,
        "persistent_workers": True,
        "prefetch_factor": PREFETCH,
        "worker_init_fn": _no_opencv_threads,
        "multiprocessing_context": START,
    }


def dataloader(work: Work, source: LoaderInput) -> Epoch:
    """Return torch's DataLoader over files."""
    loader = DataLoader(
        Files(source.files, work),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        **_processes(source),
    )
    return lambda: iter(loader)


def webdataset(work: Work, source: LoaderInput) -> Epoch:
    """Return WebDataset over tar files, split among the workers."""
    import webdataset as wds

    samples = wds.WebDataset(list(source.tars), shardshuffle=len(source.tars), seed=source.seed)
    samples = samples.shuffle(SHUFFLED_AHEAD).to_tuple("jpg").map(functools.partial(_first, work))
    loader = wds.WebLoader(
        samples.batched(BATCH, collation_fn=default_collate),
        batch_size=None,
        **_processes(source),
    )
    return lambda: iter(loader)


def spdl(work: Work, source: LoaderInput) -> Epoch:
    """Return SPDL's pipeline of threads over files, one batch per task."""
    from spdl.pipeline import PipelineBuilder

    torch.set_num_threads(1)  # SPDL's own threads use the cores
    orders = orders_of(len(source.files), source.seed)

    def load(index: Tensor) -> Tensor:
        batch: Tensor = default_collate([work(read_bytes(source.files[i])) for i in index.tolist()])
        return batch

    def epoch() -> Iterator[Tensor]:
        builder: Any = PipelineBuilder()
        builder = builder.add_source(next(orders)).pipe(load, concurrency=source.workers)
        pipeline = builder.add_sink(PREFETCH).build(num_threads=source.workers)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def _first(work: Work, sample: tuple[bytes]) -> NDArray[Any]:
    return work(sample[0])


def _no_opencv_threads(worker: int) -> None:
    cv2.setNumThreads(0)
