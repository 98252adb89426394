"""The build plan: rows, their order and their shards, made before any image is opened.

A pass over names and file sizes, without labels. Store order is (sequence, camera, frame, official
index), so that a temporal window is index arithmetic. Rows are never dropped: a missing image has
size 0 and keeps its row. The rest of the build is a function of the plan, whose hash is written to
the store.
"""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int32, Int64

from pipeline.store.schema import FORMAT_VERSION, INNER_CHUNK_BYTES
from preprocess.records import DatasetSource, SourceError

_STAT_THREADS: Final = 16  # hides the latency of a network disk, about a millisecond per file
_STAT_CHUNK: Final = 4096
_GROWTH: Final = 4
"""Growth of a JPEG of quality 50 when re-encoded at quality 95."""
_GROWTH_BYTES: Final = 64 << 10
"""Minimum size of a recoded file: a single-colour PNG is smaller than its JPEG."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StorePlan:
    """Plan with one store row per candidate image; arrays are in store order."""

    official_idx: Int32[np.ndarray, " n"]
    sequence_idx: Int32[np.ndarray, " n"]
    camera_idx: Int32[np.ndarray, " n"]
    subject_idx: Int32[np.ndarray, " n"]
    frame_idx: Int32[np.ndarray, " n"]
    tables: dict[str, list[str]]
    """Names behind ``sequence``, ``camera`` and ``subject`` indices, sorted."""
    splits: dict[str, Int32[np.ndarray, " k"]]
    """Store rows per split, in official order."""
    image: list[str]
    """Path relative to the dataset root."""
    image_bytes: Int64[np.ndarray, " n"]
    """File sizes; 0 = missing or empty."""
    shard_rows: int
    shard_capacity_bytes: int
    sha256: str

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return len(self.image)

    @property
    def num_shards(self) -> int:
        """Return the number of shards; the last may be shorter."""
        return -(-self.num_rows // self.shard_rows)

    def rows_of_shard(self, shard: int) -> slice:
        """Return the rows of ``shard``."""
        return slice(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_rows))


def make_plan(source: DatasetSource, *, shard_rows: int, may_grow: bool = False) -> StorePlan:
    """Make the plan for a source.

    Args:
        source: An opened dataset.
        shard_rows: Rows per shard; a smaller dataset gets one shard of its own size.
        may_grow: Images are re-encoded, so shards reserve space for files larger than the official
            ones. Unused space takes 16 bytes per 256 KiB on disk.

    Raises:
        SourceError: If the source has no rows or a split names a row that does not exist.
    """
    rows = source.rows
    if len(rows) == 0:
        raise SourceError(
            f"{source.dataset}: {source.root} lists no images; expected at least one, "
            "unpack the dataset again"
        )
    sequence, sequence_idx = _table(rows.sequence)
    camera, camera_idx = _table(rows.camera)
    subject, subject_idx = _table(rows.subject)
    official = np.arange(len(rows), dtype=np.int32)
    order = np.lexsort((official, rows.frame_idx, camera_idx, sequence_idx))
    row_of = np.empty(len(rows), np.int32)
    row_of[order] = official
    image = [rows.image[i] for i in order]
    image_bytes = _file_sizes(source.root, image)
    shard_rows = min(shard_rows, len(rows))
    largest_bytes = image_bytes * _GROWTH + _GROWTH_BYTES if may_grow else image_bytes
    payload = np.add.reduceat(largest_bytes, np.arange(0, len(rows), shard_rows))
    chunks = max(1, -(-int(payload.max()) // INNER_CHUNK_BYTES))
    splits = {}
    for name, indices in source.splits.items():
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(rows):
            raise SourceError(
                f"{source.dataset}: split {name!r} names rows {indices.min()}..{indices.max()}, "
                f"expected 0..{len(rows) - 1}"
            )
        splits[name] = row_of[indices]
    arrays = {
        "official_idx": official[order],
        "sequence_idx": sequence_idx[order],
        "camera_idx": camera_idx[order],
        "subject_idx": subject_idx[order],
        "frame_idx": rows.frame_idx[order],
    }
    tables = {"sequence": sequence, "camera": camera, "subject": subject}
    capacity_bytes = chunks * INNER_CHUNK_BYTES
    digest = hashlib.sha256()
    words = [source.dataset, tables, image, shard_rows, capacity_bytes, FORMAT_VERSION]
    digest.update(json.dumps(words, ensure_ascii=True).encode())
    for name, array in [*arrays.items(), ("image_bytes", image_bytes), *splits.items()]:
        digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
        digest.update(array.tobytes())
    return StorePlan(
        **arrays,
        tables=tables,
        splits=splits,
        image=image,
        image_bytes=image_bytes,
        shard_rows=shard_rows,
        shard_capacity_bytes=capacity_bytes,
        sha256=digest.hexdigest(),
    )


def _table(names: Sequence[str]) -> tuple[list[str], Int32[np.ndarray, " n"]]:
    """Return the sorted distinct names and each entry's index among them."""
    table = sorted(set(names))
    index = {name: i for i, name in enumerate(table)}
    return table, np.array([index[name] for name in names], dtype=np.int32)


def _file_sizes(root: Path, images: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """Return the sizes of regular files below ``root``; 0 where there is none."""

    def sizes(start: int) -> list[int]:
        return [_file_size(f"{root}/{name}") for name in images[start : start + _STAT_CHUNK]]

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        chunks = pool.map(sizes, range(0, len(images), _STAT_CHUNK))
        return np.array([size for chunk in chunks for size in chunk], dtype=np.int64)


def _file_size(path: str) -> int:
    try:
        status = os.stat(path)  # noqa: PTH116  # a Path object costs more than the call
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
