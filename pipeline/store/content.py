"""Content hash of a store, independent of its layout on disk."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.objects import object_names, read_object
from pipeline.store.pictures import picture_names
from pipeline.store.reader import ALL_ROWS, Store
from pipeline.store.schema import LABELS, OPTIONAL_LABELS


def content_sha256(store: Store, *, report: Callable[[int, int], None] = lambda *_: None) -> str:
    """Return the SHA-256 over labels, pictures, splits, objects and JPEG bytes, in row order.

    Offsets, chunks, compression and attributes are excluded; two builds of the same rows have the
    same hash. Every image is checked against its crc32c. Only the image index is held in memory as
    a whole; everything else is streamed.

    Args:
        store: The open store.
        report: Called with (done, total) images.

    Raises:
        StoreCorruptError: If an image differs from what was written.
    """
    digest = hashlib.sha256()
    digest.update(_array_bytes("image/length", store.image_index.length))
    digest.update(_array_bytes("image/size_hw", store.image_index.size_hw))
    optional = [spec.name for spec in OPTIONAL_LABELS if store.has_label(spec.name)]
    names = sorted([*(spec.name for spec in LABELS), *optional, *picture_names(store.path)])
    for name in names:
        for part in _parts(store, f"labels/{name}"):
            digest.update(part)
    for name in store.split_counts():
        rows = store.split(name) if name == ALL_ROWS else store.listed_rows(name)
        digest.update(_array_bytes(f"splits/{name}", rows))
    for name in object_names(store.path):
        for key, value in dataclasses.asdict(read_object(store.path, name)).items():
            digest.update(_array_bytes(f"objects/{name}/{key}", np.asarray(value)))
    for row, jpeg in store.scan(np.arange(store.num_rows)):
        store.check(row, jpeg)
        digest.update(jpeg.data)
        report(row, store.num_rows)
    return digest.hexdigest()


def _parts(store: Store, name: str) -> Iterator[bytes]:
    """Yield header and elements of a per-row array, one file at a time."""
    array = store.array(name)
    yield _header(name, array.dtype, array.shape)
    rows = (array.shards or array.chunks)[0]
    for start in range(0, array.shape[0], rows):
        yield _elements(np.asarray(array[start : start + rows]))


def _array_bytes(name: str, values: NDArray[Any]) -> bytes:
    return _header(name, values.dtype, values.shape) + _elements(values)


def _header(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    return f"{name} {dtype.str} {shape}\n".encode()


def _elements(values: NDArray[Any]) -> bytes:
    """Return the elements' bytes; NaNs, which mean "missing", are made bit-identical."""
    if np.issubdtype(values.dtype, np.floating):
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
    return np.ascontiguousarray(values).tobytes()
