"""Small stores for tests: every value is a function of its row alone."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.files import write_files
from pipeline.store.reader import read_attributes
from pipeline.store.schema import FORMAT_VERSION, LABELS, StoreAttributes
from pipeline.store.shard import num_shards, rows_of_shard
from pipeline.store.writer import create_store, finish_store, write_image_shard, write_rows

CAPACITY = 4 << 20
"""Bytes per shard of a toy store."""
COMMAND = "python -m preprocess build-cache dataset=toy out=toy.zarr"


def toy_attributes(num_rows: int, shard_rows: int, **changes: Any) -> StoreAttributes:
    attributes = StoreAttributes(
        format=FORMAT_VERSION,
        dataset="toy",
        joint_set="smplx",
        num_rows=num_rows,
        shard_rows=shard_rows,
        shard_capacity_bytes=CAPACITY,
        image_encoding="passthrough",
        licence="none",
        citation="none",
        official_counts={"train": num_rows},
        found_counts={"train": num_rows},
        flags={},
        flag_counts={},
        tables={"sequence": ["a", "b"]},
        plan_sha256="",
        content_sha256="",
        mano_sha256="",
        command=COMMAND,
        finished=False,
    )
    return dataclasses.replace(attributes, **changes)


def toy_jpegs(lengths: Iterable[int]) -> list[bytes]:
    return [np.random.default_rng(row).bytes(length) for row, length in enumerate(lengths)]


def toy_labels(rows: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Random values over the whole range of each dtype; floats with some NaN."""
    columns: dict[str, NDArray[Any]] = {}
    for spec in LABELS:
        dtype = np.dtype(spec.dtype)
        values: list[NDArray[Any]] = []
        for row in rows:
            rng = np.random.default_rng([row, len(spec.name)])
            if dtype.kind == "b":
                values.append(rng.random(spec.shape) < 0.5)
            elif dtype.kind == "f":
                drawn = rng.standard_normal(spec.shape)
                values.append(np.where(rng.random(spec.shape) < 0.1, np.nan, drawn))
            else:
                limits = np.iinfo(dtype)
                values.append(rng.integers(limits.min, limits.max, spec.shape, endpoint=True))
        columns[f"labels/{spec.name}"] = np.array(values).astype(dtype)
    return columns


def fill_shard(path: Path, shard: int, jpegs: Sequence[bytes], attributes: StoreAttributes) -> None:
    rows = rows_of_shard(attributes, shard)
    part = jpegs[rows.start : rows.stop]
    offset, length, crc32c = write_image_shard(path, shard, part, attributes)
    size_hw = np.array([(row % 7, row % 5) for row in rows], np.uint16)
    index: dict[str, NDArray[Any]] = {
        "offset": offset,
        "length": length,
        "crc32c": crc32c,
        "size_hw": size_hw,
    }
    columns = {f"image/{name}": values for name, values in index.items()}
    write_rows(path, shard, columns | toy_labels(rows))


def toy_store(
    path: Path,
    lengths: Sequence[int],
    shard_rows: int,
    *,
    splits: dict[str, NDArray[np.integer]] | None = None,
    shard_order: Iterable[int] | None = None,
) -> StoreAttributes:
    """Build a finished store of ``len(lengths)`` rows."""
    attributes = toy_attributes(len(lengths), shard_rows)
    create_store(path, attributes, splits or {})
    jpegs = toy_jpegs(lengths)
    for shard in shard_order or range(num_shards(attributes)):
        fill_shard(path, shard, jpegs, attributes)
    return finish_store(path, attributes)


def relist(path: Path) -> None:
    """Take changes of a store's files for the store: what a test changed is not found at open."""
    write_files(path, read_attributes(path).content_sha256)
