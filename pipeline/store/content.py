"""Content hash: what a store holds, whatever its shards look like on disk."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.image_bytes import open_array, rebuild
from pipeline.store.reader import Store
from pipeline.store.schema import LABELS


def content_sha256(store: Store) -> str:
    """Return the SHA-256 over decoded labels, splits and JPEG bytes, in row order.

    Offsets, chunks, compression and attributes do not count; two builds of the same rows have the
    same hash. Every image is checked against its crc32c on the way.

    Raises:
        StoreCorruptError: If an image differs from what was written.
    """
    digest = hashlib.sha256()
    digest.update(_array_bytes("image/length", store.image_index.length))
    digest.update(_array_bytes("image/size_hw", store.image_index.size_hw))
    for name in sorted(spec.name for spec in LABELS):
        # Not through store.label: it would keep every label in RAM.
        array = open_array(store.path / "labels" / name, rebuild(store.attributes))
        digest.update(_array_bytes(f"labels/{name}", np.asarray(array[...])))
    for name in store.split_counts():
        digest.update(_array_bytes(f"splits/{name}", store.split(name)))
    for row, jpeg in store.scan(np.arange(store.num_rows)):
        store.check(row, jpeg)
        digest.update(jpeg.data)
    return digest.hexdigest()


def _array_bytes(name: str, values: NDArray[Any]) -> bytes:
    """Return name, type, shape and elements; all NaNs are one NaN: they mean "missing"."""
    if np.issubdtype(values.dtype, np.floating):
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
    header = f"{name} {values.dtype.str} {values.shape}\n".encode()
    return header + np.ascontiguousarray(values).tobytes()
