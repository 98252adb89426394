"""Write a store: create it, fill it shard by shard in any order, finish it.

    create_store(path, attributes, splits)
    for shard in range(num_shards(attributes)):         # any order, one process per shard
        offset, length, crcs = write_image_shard(path, shard, payloads, attributes)
        write_rows(path, shard, {"image/offset": offset, ..., "labels/K": K})
    finish_store(path, attributes)

Every step can be repeated after a crash. ``image/bytes`` is written directly and not through
zarr-python, which reads the old shard before it writes a new one and never calls fsync.
"""

import dataclasses
import json
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import zarr
import zarr.codecs
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from pipeline.app.files import LEFT_BEHIND, PARTIAL, replace_file, sync
from pipeline.app.words import closest
from pipeline.store.content import content_sha256
from pipeline.store.errors import StoreError
from pipeline.store.files import GROUPS, write_files
from pipeline.store.objects import ObjectShape, write_object
from pipeline.store.pictures import create_pictures
from pipeline.store.reader import ALL_ROWS, open_store, read_attributes
from pipeline.store.schema import (
    ATTRIBUTE,
    FORMAT_VERSION,
    IMAGE_INDEX,
    INNER_CHUNK_BYTES,
    LABELS,
    OPTIONAL_LABELS,
    OURS,
    ArraySpec,
    StoreAttributes,
)
from pipeline.store.shard import (
    crc32c,
    num_shards,
    rows_of_shard,
    shard_path,
    shard_tail,
)

ROW_ARRAYS: Final[Mapping[str, ArraySpec]] = {
    **{f"image/{spec.name}": spec for spec in IMAGE_INDEX},
    **{f"labels/{spec.name}": spec for spec in LABELS},
}
"""Per-row arrays of every store by their path in it."""
OPTIONAL_ARRAYS: Final[Mapping[str, ArraySpec]] = {
    f"labels/{spec.name}": spec for spec in OPTIONAL_LABELS
}
_SPECS: Final = {**ROW_ARRAYS, **OPTIONAL_ARRAYS}
FLAT_KEYS: Final[dict[str, Any]] = {"name": "default", "separator": "."}
"""Chunk files of per-row arrays are in one folder: ``c.7.0.0``, not ``c/7/0/0``."""
_ZSTD: Final = Zstd(level=3, checksum=False)
MEMBERS: Final = (*GROUPS, "zarr.json")
"""What the folder of a store holds."""
SPLIT_NAME: Final = re.compile(r"\w[\w.-]*", re.ASCII)


def create_store(
    path: Path,
    attributes: StoreAttributes,
    splits: Mapping[str, NDArray[np.integer]],
    *,
    objects: Sequence[ObjectShape] = (),
    pictures: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    optional: Sequence[str] = (),
) -> None:
    """Create an unfinished store at ``path`` with all its arrays; write its splits and objects.

    ``zarr.json`` comes last: killed before, the folder is no store. What is in the folder beside
    arrays, such as a lock, stays.

    Args:
        path: The store's folder; created if need be, must not hold a store or part of one.
        attributes: Its attributes; ``finished`` and ``content_sha256`` are set by ``finish_store``.
        splits: Row lists by name.
        objects: The shapes of ``attributes.tables['object']``.
        pictures: Height and width of the ``schema.PICTURES`` to create, by name.
        optional: Names of the ``schema.OPTIONAL_LABELS`` to create.

    Raises:
        StoreError: If there is a store, or the arguments contradict each other; lists all problems.
    """
    if any((path / name).exists() for name in MEMBERS):
        raise StoreError(f"{path} holds a store or part of one; remove it or choose another path")
    if problems := [*_layout_problems(attributes), *_split_problems(splits, attributes)]:
        raise StoreError(f"store {path}: {'; '.join(problems)}")
    partial = path / f"{OURS}{uuid.uuid4().hex}"
    partial.mkdir(parents=True)
    unfinished = dataclasses.replace(attributes, finished=False, content_sha256="")
    group = zarr.create_group(partial, attributes={ATTRIBUTE: dataclasses.asdict(unfinished)})
    capacity = attributes.shard_capacity_bytes
    group.create_array(
        "image/bytes",
        shape=(num_shards(attributes) * capacity,),
        chunks=(INNER_CHUNK_BYTES,),
        shards=(capacity,),
        dtype="uint8",
        fill_value=0,
        compressors=None,
    )
    zstd = zarr.codecs.ZstdCodec(level=_ZSTD.level, checksum=_ZSTD.checksum)
    chosen = {f"labels/{name}": OPTIONAL_ARRAYS[f"labels/{name}"] for name in optional}
    for name, spec in {**ROW_ARRAYS, **chosen}.items():
        group.create_array(
            name,
            shape=(attributes.num_rows, *spec.shape),
            chunks=(attributes.shard_rows, *spec.shape),
            dtype=spec.dtype,
            fill_value=spec.fill,
            compressors=zstd,
            chunk_key_encoding=FLAT_KEYS,
            attributes={"unit": spec.unit, "meaning": spec.meaning},
        )
    group.create_group("splits")
    for name, rows in splits.items():
        array = group.create_array(
            f"splits/{name}",
            shape=(len(rows),),
            chunks=(max(len(rows), 1),),
            dtype="int32",
            fill_value=-1,
            compressors=zstd,
        )
        array[...] = np.asarray(rows, np.int32)
    shapes = group.create_group("objects")
    for shape in objects:
        write_object(shapes, shape)
    for name, size_hw in pictures.items():
        create_pictures(group, name, size_hw, attributes)
    for entry in partial.rglob("*"):
        sync(entry)
    for name in MEMBERS:
        (partial / name).rename(path / name)
    partial.rmdir()
    sync(path)
    sync(path.parent)


def remove_store(path: Path) -> None:
    """Remove the store at ``path``, and what a killed process left of one; foreign files stay.

    ``zarr.json`` goes first: killed at any moment, the folder is no store, and all of it that is
    left is found by the next call.
    """
    aside = path / f"{OURS}{uuid.uuid4().hex}"
    aside.mkdir()
    for name in reversed(MEMBERS):
        if (path / name).exists():
            (path / name).rename(aside / name)
    for folder in _temporary(path):
        shutil.rmtree(folder)


def foreign_files(path: Path) -> list[str]:
    """Return the names in a folder that are neither a store's nor left by a killed process.

    Without ``zarr.json``, arrays are a store's if our temporary folder proves that it was being
    made or removed.
    """
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(OURS))
    is_ours = MEMBERS[-1] in names or bool(_temporary(path))
    return [name for name in names if not is_ours or name not in MEMBERS]


def _temporary(path: Path) -> list[Path]:
    return [entry for entry in path.glob(f"{OURS}*") if entry.is_dir()]


def write_image_shard(
    path: Path,
    shard: int,
    payloads: Sequence[bytes | memoryview],
    attributes: StoreAttributes,
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Write the JPEG bytes of one shard; atomic: a crash leaves the old file or the new one.

    Args:
        path: The store's folder.
        shard: Which shard.
        payloads: JPEG bytes of its rows; empty where the image is unreadable. If all are empty no
            file is written.
        attributes: The store's attributes.

    Returns:
        Logical offset (over all shards), length and crc32c of every row, for ``write_rows``.

    Raises:
        StoreError: If the number of rows is wrong or the bytes exceed the shard's capacity.
    """
    rows, capacity = rows_of_shard(attributes, shard), attributes.shard_capacity_bytes
    views = [memoryview(payload) for payload in payloads]
    length = np.array([view.nbytes for view in views], np.uint32)
    total = int(length.sum(dtype=np.int64))
    if len(views) != len(rows):
        raise StoreError(f"shard {shard} of {path} has {len(rows)} rows, got {len(views)}")
    if total > capacity:
        raise StoreError(
            f"shard {shard} of {path} holds {capacity} bytes, got {total}; "
            "plan a larger shard_capacity_bytes or fewer shard_rows"
        )
    offset = shard * capacity + np.cumsum(length, dtype=np.int64) - length
    crcs = np.array([crc32c(view) for view in views], np.uint32)
    file = shard_path(path, shard)
    if total:
        file.parent.mkdir(exist_ok=True)
        replace_file(file, *views, shard_tail(total, capacity))
    else:
        file.unlink(missing_ok=True)
    return offset, length, crcs


def write_rows(path: Path, shard: int, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write the rows of one shard into per-row arrays, one chunk each.

    A crash leaves the old chunk or the new one. Chunks are written directly and not through
    zarr-python, which takes forty times as long for the same bytes and never calls fsync.

    Args:
        path: The store's folder.
        shard: Which shard.
        columns: Values by the array's path in the store, such as ``labels/K``; arrays left out
            keep their fill value ("missing").

    Raises:
        StoreError: If a name, dtype or shape violates the schema; lists all problems.
    """
    attributes = read_attributes(path, allow_unfinished=True)
    rows = rows_of_shard(attributes, shard)
    problems = [
        problem
        for name, values in columns.items()
        if (problem := _row_problem(name, values, len(rows)))
    ]
    if problems:
        raise StoreError(f"shard {shard} of {path}: {'; '.join(problems)}")
    for name, values in columns.items():
        file = path / chunk_file(name, shard)
        encoded = _encoded_chunk(values, _SPECS[name], attributes.shard_rows)
        if encoded:
            replace_file(file, encoded)
        else:
            file.unlink(missing_ok=True)
            sync(file.parent)


def _encoded_chunk(values: NDArray[Any], spec: ArraySpec, shard_rows: int) -> bytes:
    """Encode a chunk for Zarr v3 (little endian, zstd); empty if all values are fill."""
    chunk = np.full((shard_rows, *spec.shape), spec.fill, spec.dtype)
    chunk[: len(values)] = values
    is_fill = np.isnan(chunk) if chunk.dtype.kind == "f" else chunk == spec.fill
    return b"" if is_fill.all() else bytes(_ZSTD.encode(chunk.tobytes()))


def chunk_file(name: str, shard: int) -> str:
    """Return the file with the rows of ``shard`` of a per-row array, relative to the store.

    The file is absent where all values are the fill value.
    """
    ndim = 1 + len(_SPECS[name].shape)
    return f"{name}/{'.'.join(['c', str(shard), *['0'] * (ndim - 1)])}"


def finish_store(
    path: Path, attributes: StoreAttributes, *, report: Callable[[int, int], None] = lambda *_: None
) -> StoreAttributes:
    """Compute the content hash and mark the store as finished, as the last step of a build.

    Idempotent: may be repeated on a finished store.

    Args:
        path: The store's folder.
        attributes: Final attributes of the build; the layout must be the one created.
        report: Called with (done, total) images while their checksums are verified.

    Returns:
        The attributes as written, with ``content_sha256``.

    Raises:
        StoreError: If ``attributes`` change the layout of the store.
        StoreCorruptError: If its bytes are not those that were written.
    """
    created = read_attributes(path, allow_unfinished=True)
    for name in ("format", "num_rows", "shard_rows", "shard_capacity_bytes"):
        expected, got = getattr(created, name), getattr(attributes, name)
        if expected != got:
            raise StoreError(f"store {path} was created with {name}={expected}, got {got}")
    for leftover in path.rglob(f"*{PARTIAL}"):
        if LEFT_BEHIND.search(leftover.name):
            leftover.unlink()
    # pread: mapped pages would count as this process's memory until they are reclaimed.
    store = open_store(path, reader="pread", allow_unfinished=True, allow_unlisted=True)
    finished = dataclasses.replace(
        attributes, content_sha256=content_sha256(store, report=report), finished=True
    )
    store.close()
    write_files(path, finished.content_sha256)
    file = path / "zarr.json"
    group = json.loads(file.read_text())
    group["attributes"][ATTRIBUTE] = dataclasses.asdict(finished)
    # zarr-python warns about an unknown file in a group's folder, not in an array's.
    under_way = path / "image" / "bytes"
    replace_file(file, json.dumps(group, indent=2).encode(), folder=under_way)
    return finished


def _layout_problems(attributes: StoreAttributes) -> list[str]:
    problems = [
        f"{name} must be positive, got {getattr(attributes, name)}"
        for name in ("num_rows", "shard_rows", "shard_capacity_bytes")
        if getattr(attributes, name) <= 0
    ]
    if attributes.format != FORMAT_VERSION:
        problems.append(f"format must be {FORMAT_VERSION}, got {attributes.format}")
    if attributes.shard_capacity_bytes % INNER_CHUNK_BYTES:
        problems.append(
            f"shard_capacity_bytes must be a multiple of {INNER_CHUNK_BYTES}, "
            f"got {attributes.shard_capacity_bytes}"
        )
    return problems


def _split_problems(
    splits: Mapping[str, NDArray[np.integer]], attributes: StoreAttributes
) -> list[str]:
    problems = []
    for name, rows in splits.items():
        if name == ALL_ROWS or not SPLIT_NAME.fullmatch(name):
            problems.append(
                f"split {name!r} must be letters, digits, '_', '-', '.', and not {ALL_ROWS!r}"
            )
        elif rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            problems.append(f"split {name!r} must be a list of rows, got {_kind(rows)}")
        elif len(rows) and not 0 <= rows.min() <= rows.max() < attributes.num_rows:
            problems.append(
                f"split {name!r} must lie in 0..{attributes.num_rows - 1}, "
                f"got {rows.min()}..{rows.max()}"
            )
    return problems


def _row_problem(name: str, values: NDArray[Any], num_rows: int) -> str:
    """Return the problem of one column, "" if there is none."""
    if name not in _SPECS:
        near = closest(name, _SPECS)
        return f"unknown array {name!r}" + (f", did you mean {near!r}?" if near else "")
    spec = _SPECS[name]
    expected, got = f"{spec.dtype} {(num_rows, *spec.shape)}", _kind(values)
    return f"{name} must be {expected}, got {got}" if got != expected else ""


def _kind(values: NDArray[Any]) -> str:
    return f"{values.dtype} {values.shape}"
