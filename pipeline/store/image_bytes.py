"""Readers of ``image/bytes`` by logical position; verify the layout of all shards first.

A shard without inner codecs is a flat file followed by an index. ``mmap`` returns views of it and
holds every shard open; ``pread`` opens the file for each range (network disks, the cache fill).
Both need a verified layout, so that a truncated file is an error at open and not a SIGBUS later.
``zarr`` reads any legal layout through zarr-python. ``auto`` is zarr where the layout is not
verified, pread where there are more shards than this process may open or the disk cannot be mapped,
else mmap.
"""

import errno
import mmap
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.store.arrays import ZARR_ERRORS, read_metadata, read_values, unreadable
from pipeline.store.errors import StoreError
from pipeline.store.files import ListedStore, StoreFiles
from pipeline.store.schema import StoreAttributes
from pipeline.store.shard import corrupt, num_shards, prove_shard, rows_of_shard, shard_path

Reader = Literal["auto", "mmap", "pread", "zarr"]
_NOT_MAPPED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOSYS})
_OTHER_FILES: Final = 256
"""Files that a process opens beside shards: libraries, logs, workers, other stores."""
ReadBytes = Callable[[int, int], NDArray[np.uint8]]
"""Return the logical bytes ``[start, stop)``, which lie in one shard; read-only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageIndex:
    """Position of each row's JPEG; arrays as in ``schema.IMAGE_INDEX``, read-only."""

    offset: NDArray[np.int64]
    length: NDArray[np.uint32]
    crc32c: NDArray[np.uint32]
    size_hw: NDArray[np.uint16]


def open_image_bytes(
    path: Path,
    attributes: StoreAttributes,
    index: ImageIndex,
    reader: Reader,
) -> ReadBytes:
    """Return the function that reads the image bytes of the store at ``path``.

    Args:
        path: The store's folder.
        attributes: Its attributes.
        index: Positions of its rows; checked against the shards.
        reader: See the module docstring.

    Raises:
        StoreError: If ``reader`` cannot read this layout.
        StoreCorruptError: If a row lies outside its shard, or a shard is missing, truncated or has
            a damaged index.
    """
    cure = rebuild(attributes)
    _check_rows(path, attributes, index)
    array = open_array(path, "image/bytes", cure)
    obstacle = _prove(path, attributes, index, array)
    if obstacle and reader in {"mmap", "pread"}:
        raise StoreError(f"reader={reader} cannot read {obstacle}; use reader=auto")
    if obstacle or reader == "zarr":
        return _zarr_bytes(array, path / "image" / "bytes", cure)
    files = {
        s: file for s in range(num_shards(attributes)) if (file := shard_path(path, s)).is_file()
    }
    capacity = attributes.shard_capacity_bytes
    if reader == "pread" or (reader == "auto" and not _may_open(len(files))):
        return _pread_bytes(files, capacity, cure)
    try:
        return _mmap_bytes(files, capacity)
    except OSError as error:
        if reader == "auto" and error.errno in _NOT_MAPPED:
            return _pread_bytes(files, capacity, cure)
        if error.errno not in _NOT_MAPPED:
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise StoreError(
            f"reader=mmap cannot map the {len(files)} shards of {path} ({error.strerror}; this "
            f"process may open {limit} files); use reader=auto"
        ) from error


def _may_open(num: int) -> bool:
    """Return whether this process may hold ``num`` more files, after raising its soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        return False
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return True


def open_array(
    path: Path, name: str, cure: str, files: StoreFiles | None = None
) -> zarr.Array[Any]:
    """Open one Zarr array of the store at ``path`` for reading.

    Args:
        path: The store's folder.
        name: The array, such as ``labels/K``.
        cure: How to repair the store; ends the error message.
        files: List that its files are compared with; None: no comparison.

    Raises:
        StoreCorruptError: If there is none, now, or a file differs, also when it is read later.
    """
    metadata = read_metadata(path, name, cure, files)
    try:
        if files is None:
            return zarr.open_array(path / name, mode="r", zarr_format=3)
        listed = ListedStore(path, files, cure, metadata.zstd_bytes)
        return zarr.open_array(listed, path=name, mode="r", zarr_format=3)
    except ZARR_ERRORS as error:
        raise unreadable(path / name, error, cure) from error


def rebuild(attributes: StoreAttributes) -> str:
    """Return the fix for a damaged store, for error messages."""
    return f"rebuild the store with: {attributes.command}"


def _check_rows(path: Path, attributes: StoreAttributes, index: ImageIndex) -> None:
    """Reject rows that exceed their shard or overlap the previous row."""
    capacity = attributes.shard_capacity_bytes
    rows = np.flatnonzero(index.length)
    start = index.offset[rows]
    largest = num_shards(attributes) * capacity
    for i in np.flatnonzero((start < 0) | (start > largest))[:1]:  # before a sum could wrap
        raise corrupt(
            path / "image" / "offset",
            f"row {rows[i]} within bytes 0..{largest}",
            f"{start[i]}",
            rebuild(attributes),
        )
    stop = start + index.length[rows]
    shard = rows // attributes.shard_rows
    lowest = np.maximum(shard * capacity, np.concatenate([[0], stop[:-1]])[: len(rows)])
    highest = (shard + 1) * capacity
    for i in np.flatnonzero((start < lowest) | (stop > highest))[:1]:
        raise corrupt(
            path / "image" / "offset",
            f"row {rows[i]} within bytes {lowest[i]}..{highest[i]}",
            f"{start[i]}..{stop[i]}",
            rebuild(attributes),
        )


def _prove(
    path: Path, attributes: StoreAttributes, index: ImageIndex, array: zarr.Array[Any]
) -> str:
    """Return "" if every shard can be read as a flat file, else the obstacle in words."""
    cure, capacity = rebuild(attributes), attributes.shard_capacity_bytes
    if array.shards != (capacity,) or not _has_flat_codecs(array):
        return f"the chunks and codecs of {path / 'image' / 'bytes'}"
    obstacle = ""
    for shard in range(num_shards(attributes)):
        file, rows = shard_path(path, shard), rows_of_shard(attributes, shard)
        length = index.length[rows.start : rows.stop]
        used = int(np.where(length > 0, index.offset[rows.start : rows.stop] + length, 0).max())
        used = max(used - shard * capacity, 0)
        if not file.is_file():
            if used:
                raise corrupt(file, f"{used} bytes of images", "no such file", cure)
            continue
        payload = prove_shard(file, capacity, inner_bytes=array.chunks[0], cure=cure)
        if payload is None:
            obstacle = f"the order of the inner chunks in {file}"
        elif payload < used:
            raise corrupt(file, f"{used} bytes of images", f"{payload}", cure)
    return obstacle


def _has_flat_codecs(array: zarr.Array[Any]) -> bool:
    """Return whether inner chunks are stored uncompressed, with a crc32c index at the end."""
    index_codecs = (
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "crc32c"},
    )
    flat = {
        "chunk_shape": array.chunks,
        "codecs": ({"name": "bytes"},),
        "index_codecs": index_codecs,
        "index_location": "end",
    }
    return array.metadata.to_dict()["codecs"] == (
        {"name": "sharding_indexed", "configuration": flat},
    )


def _mmap_bytes(files: dict[int, Path], capacity: int) -> ReadBytes:
    """Return a reader of mapped files; each map is released with its last view."""
    views = {}
    for shard, file in files.items():
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        views[shard] = np.frombuffer(mapped, np.uint8)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        shard, local = divmod(start, capacity)
        return views[shard][local : local + stop - start]

    return read


def _pread_bytes(files: dict[int, Path], capacity: int, cure: str) -> ReadBytes:
    """Return a reader that opens a file for each read, into a new buffer."""
    verified = {shard: _identity(file.stat()) for shard, file in files.items()}

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        shard, local = divmod(start, capacity)
        buffer = np.empty(stop - start, np.uint8)
        with files[shard].open("rb", buffering=0) as opened:
            if _identity(os.fstat(opened.fileno())) != verified[shard]:
                raise corrupt(
                    files[shard],
                    "the file that was verified when the store was opened",
                    "another one: the store was exchanged meanwhile",
                    "start again with the new store, or put the old one back",
                )
            count = os.preadv(opened.fileno(), [buffer.data], local)
        if count != len(buffer):  # truncated after it was verified
            raise corrupt(files[shard], f"{len(buffer)} bytes at {local}", f"{count}", cure)
        buffer.flags.writeable = False
        return buffer

    return read


def _identity(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _zarr_bytes(array: zarr.Array[Any], path: Path, cure: str) -> ReadBytes:
    """Return a reader with plain slices: ``oindex`` on a sharded array is 1,000 times slower."""

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        values = read_values(array, path, cure, slice(start, stop)).astype(np.uint8, copy=False)
        values.flags.writeable = False
        return values

    return read
