"""The cache: every sample's crop and labels on the device, filled once by the decoder."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from model.hand import JointSet
from pipeline.codec import Pixels, allocate, bytes_per_sample, write
from pipeline.config import CacheConfig, OnBadImage, ViewKind
from pipeline.graph import PREFETCH, decode_crops
from pipeline.labels import LabelTable, load_labels
from pipeline.source import ImagePlan, describe_row, encoded_batches, plan_images
from pipeline.store.errors import StoreCorruptError
from pipeline.store.reader import Store
from pipeline.view import ViewTable, table_to

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""Told (images done, images in all)."""
KEPT_FREE: Final = 0.05
"""Share of the free memory that a fill leaves to the decoder and the allocator."""


class BadImageError(StoreCorruptError):
    """An image has the bytes that were stored, but they do not decode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """Samples on the device; row ``i`` of every part is sample ``i`` of the view."""

    pixels: Pixels
    view: ViewTable
    labels: LabelTable
    joint_set: JointSet
    num_images: int
    """Images decoded; fewer than samples where a frame shows two hands."""
    seconds: float
    """What the fill took."""


def fill(
    store: Store,
    view: ViewTable,
    kind: ViewKind,
    config: CacheConfig,
    device: torch.device,
    *,
    progress: Progress | None = None,
) -> Resident:
    """Decode the crops of ``view`` and copy them and their labels to ``device``.

    Raises:
        ValueError: If the cache is larger than the free memory; says what to change.
        StoreCorruptError: If an image's bytes changed since the build; names the sample.
        BadImageError: If an image cannot be decoded and ``on_bad_image`` is ``stop``; names it.
    """
    begin = time.perf_counter()
    _check_memory(len(view), config, device)
    pixels = allocate(len(view), config.size_px, config.codec, device)
    labels = load_labels(store, view, kind)
    plan = plan_images(store, view, config.size_px)
    num_images, done = len(plan.row), 0
    while done < len(plan.row):
        crops = decode_crops(
            encoded_batches(store, view, plan[done:], config.decode_batch),
            size_px=config.size_px,
            num_crops=plan.sample.shape[1],
            batch_size=config.decode_batch,
            num_threads=config.decode_threads or len(os.sched_getaffinity(0)),
            device=device,
        )
        try:
            with closing(crops):
                for batch in crops:
                    _write(pixels, batch, plan.sample[done : done + len(batch[0])])
                    done += len(batch[0])
                    if progress is not None:
                        progress(done, num_images)
        except RuntimeError as error:
            # The decoder says neither which image nor, read ahead, exactly which batch.
            near = plan[done : done + (1 + PREFETCH) * config.decode_batch]
            bad = _find_bad_image(store, view, near, config, device)
            if bad is None:
                raise
            what = f"{describe_row(store, view, int(near.row[bad]))} cannot be decoded"
            if config.on_bad_image is OnBadImage.stop:
                raise BadImageError(
                    f"{what}; restore the file and rebuild the store, or train without it: "
                    "cache.on_bad_image=skip"
                ) from error
            log.warning("%s; skipped", what)
            _hide(labels, near.sample[bad])
            plan = plan[np.delete(np.arange(len(plan.row)), done + bad)]
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # once, so that the time is the fill's
    return Resident(
        pixels=pixels,
        view=table_to(view, device),
        labels=table_to(labels, device),
        joint_set=JointSet[store.attributes.joint_set],
        num_images=num_images,
        seconds=time.perf_counter() - begin,
    )


def _write(pixels: Pixels, crops: list[Tensor], sample: np.ndarray) -> None:
    """Copy decoded crops to their places; crop ``k`` of image ``i`` is sample ``sample[i, k]``."""
    for k, crop in enumerate(crops):
        there = np.flatnonzero(sample[:, k] >= 0)
        place = torch.from_numpy(sample[there, k]).to(pixels.device)
        kept = crop[torch.from_numpy(there).to(crop.device)] if len(there) < len(crop) else crop
        write(pixels, place, kept)


def _find_bad_image(
    store: Store, view: ViewTable, plan: ImagePlan, config: CacheConfig, device: torch.device
) -> int | None:
    """Return the first image that does not decode alone."""
    for i in range(len(plan.row)):
        one = encoded_batches(store, view, plan[i : i + 1], 1)
        try:
            for _ in decode_crops(
                one,
                size_px=config.size_px,
                num_crops=plan.sample.shape[1],
                batch_size=1,
                num_threads=1,
                device=device,
            ):
                pass
        except RuntimeError:
            return i
    return None


def _hide(labels: LabelTable, samples: np.ndarray) -> None:
    """Take every label of skipped samples back."""
    index = torch.from_numpy(samples[samples >= 0])
    for mask in (labels.joint_valid, labels.has_joints, labels.has_mano, labels.has_beta):
        mask[index] = False


def _check_memory(num: int, config: CacheConfig, device: torch.device) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    needed = num * bytes_per_sample(config.codec, config.size_px)
    if needed > (1 - KEPT_FREE) * free:
        raise ValueError(
            f"the cache of {num} samples of {config.size_px} px needs {needed / 1e9:.1f} GB, "
            f"{device} has {free / 1e9:.1f} GB free; use subset=... or a smaller cache.size_px"
        )
