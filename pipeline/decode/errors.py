"""Images that do not decode: which one it is, and whether the run goes on without it."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

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
    images: Iterable[Iterator[EncodedBatch]],
    config: CacheConfig,
    num_crops: int,
    device: torch.device,
) -> int | None:
    """Return which of some images, a batch each, is the first that does not decode."""
    for i, one in enumerate(images):
        try:
            for _ in decode_crops(
                one,
                replace(config, decode_threads=1),
                num_crops=num_crops,
                batch_size=1,
                device=device,
            ):
                pass
        except RuntimeError:
            return i
    return None
