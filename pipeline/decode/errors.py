"""Images that do not decode: which one it is, and whether the run goes on without it."""

import logging
from collections import deque
from collections.abc import Callable, Iterator

import torch

from pipeline.config import CacheConfig, OnBadImage
from pipeline.decode.graph import decode_crops
from pipeline.decode.source import EncodedBatch
from pipeline.store.errors import StoreCorruptError

log = logging.getLogger(__name__)


class BadImageError(StoreCorruptError):
    """An image has the bytes that were stored, but they do not decode."""


def raise_if_out_of_memory(error: RuntimeError) -> None:
    """Raise an error that is not an image's: memory that ran out."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower():
        raise error


def skip_or_raise(what: str, config: CacheConfig, error: Exception) -> None:
    """Log that the image ``what`` is skipped.

    Raises:
        BadImageError: If configuration forbids it.
    """
    if config.on_bad_image is OnBadImage.stop:
        raise BadImageError(
            f"{what} cannot be decoded; restore the file and rebuild the store, or train without "
            "it: cache.on_bad_image=skip"
        ) from error
    log.warning("%s cannot be decoded; skipped", what)


def first_undecodable(
    num: int,
    batches: Callable[[int, int], Iterator[EncodedBatch]],
    config: CacheConfig,
    num_crops: int,
    device: torch.device,
) -> int | None:
    """Return which of ``num`` images is the first that does not decode; None = all do.

    They are tried by halves: a GPU's decoder takes most of a second to build.

    Args:
        num: Images to try.
        batches: Yields those from one number up to another, at most ``config.decode_batch`` each.
        config: Of the cache.
        num_crops: Crops of every image.
        device: That decodes.
    """
    first, last = 0, num  # all before first decode, one of first .. last does not
    if not num or _decode(batches(first, last), config, num_crops, device):
        return None
    while last - first > 1:
        middle = (first + last) // 2
        if _decode(batches(first, middle), config, num_crops, device):
            first = middle
        else:
            last = middle
    return first


def _decode(
    batches: Iterator[EncodedBatch], config: CacheConfig, num_crops: int, device: torch.device
) -> bool:
    """Return whether images decode."""
    crops = decode_crops(
        batches, config, num_crops=num_crops, batch_size=config.decode_batch, device=device
    )
    try:
        deque(crops, maxlen=0)  # which keeps none
    except RuntimeError as error:
        raise_if_out_of_memory(error)
        return False
    return True
