"""Layout of one shard file of ``image/bytes``: Zarr v3 ``sharding_indexed``, index at the end.

    payload | zeros up to the inner chunk | index: n x (offset, nbytes) uint64 | crc32c uint32

All numbers are little endian, n = capacity // inner chunk. Inner chunks have no codec, so the
payload is stored unchanged and every row is one contiguous slice of it. Inner chunks after the
payload are absent: both numbers are 2^64 - 1 and no byte is stored.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

import os
from pathlib import Path
from typing import Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.store.errors import StoreCorruptError
from pipeline.store.schema import INNER_CHUNK_BYTES, StoreAttributes

ABSENT: Final = np.uint64(2**64 - 1)


def num_shards(attributes: StoreAttributes) -> int:
    """Return the number of shards for the rows; the last one may be short."""
    return -(-attributes.num_rows // attributes.shard_rows)


def rows_of_shard(attributes: StoreAttributes, shard: int) -> range:
    """Return the rows of ``shard``.

    Raises:
        IndexError: If the store has no such shard.
    """
    if not 0 <= shard < num_shards(attributes):
        raise IndexError(f"shard must lie in 0..{num_shards(attributes) - 1}, got {shard}")
    start = shard * attributes.shard_rows
    return range(start, min(start + attributes.shard_rows, attributes.num_rows))


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """Return the crc32c of ``data``."""
    readable = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else data
    return int(google_crc32c.value(readable))


def shard_path(path: Path, shard: int) -> Path:
    """Return the file of ``shard`` in the store at ``path``."""
    return path / "image" / "bytes" / "c" / str(shard)


def index_bytes(capacity_bytes: int, inner_bytes: int = INNER_CHUNK_BYTES) -> int:
    """Return the size of the index including its crc32c."""
    return 16 * (capacity_bytes // inner_bytes) + 4


def shard_bytes(payload_nbytes: int, capacity_bytes: int) -> int:
    """Return the size of a shard file with ``payload_nbytes`` of payload."""
    num_chunks = -(-payload_nbytes // INNER_CHUNK_BYTES)
    return num_chunks * INNER_CHUNK_BYTES + index_bytes(capacity_bytes)


def shard_tail(payload_nbytes: int, capacity_bytes: int) -> bytes:
    """Return what follows the payload in the file: zero padding, index and its crc32c."""
    num_chunks = -(-payload_nbytes // INNER_CHUNK_BYTES)
    index = np.full((capacity_bytes // INNER_CHUNK_BYTES, 2), ABSENT, dtype="<u8")
    index[:num_chunks, 0] = np.arange(num_chunks) * INNER_CHUNK_BYTES
    index[:num_chunks, 1] = INNER_CHUNK_BYTES
    padding = bytes(num_chunks * INNER_CHUNK_BYTES - payload_nbytes)
    return padding + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")


def prove_shard(
    path: Path,
    capacity_bytes: int,
    *,
    inner_bytes: int = INNER_CHUNK_BYTES,
    cure: str = "rebuild the store",
) -> int | None:
    """Return the padded payload length if logical byte i is byte i of the file, else None.

    Verified by the index: its crc32c matches, inner chunks are ascending and contiguous from byte
    0, absent ones come last, and they fill the file. Any other order is legal Zarr, as written by
    tools that rewrite shards, but needs a Zarr library to read: the result is then None.

    Args:
        path: The shard file.
        capacity_bytes: Logical bytes of a shard.
        inner_bytes: Bytes of an inner chunk.
        cure: How to repair the store; ends the error message.

    Raises:
        StoreCorruptError: If the file is truncated or its index is damaged.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        payload_nbytes = size - index_bytes(capacity_bytes, inner_bytes)
        if payload_nbytes < 0:
            raise corrupt(path, f"at least {size - payload_nbytes} bytes", f"{size}", cure)
        tail = os.pread(file.fileno(), size - payload_nbytes, payload_nbytes)
    written, found = int.from_bytes(tail[-4:], "little"), crc32c(tail[:-4])
    if written != found:
        raise corrupt(
            path,
            f"an index with crc32c {written:#010x} at the end of the file",
            f"{found:#010x} (truncated or damaged at {size} bytes)",
            cure,
        )
    index: NDArray[np.uint64] = np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)
    chunks = index[(index != ABSENT).any(axis=1)]
    # Each number is checked first: their sum could overflow.
    if chunks.max(initial=0) > payload_nbytes or chunks.sum(axis=1).max(initial=0) > payload_nbytes:
        raise corrupt(path, f"inner chunks within {payload_nbytes} bytes", "one behind them", cure)
    in_order = np.stack(
        [np.arange(len(chunks)) * inner_bytes, np.full(len(chunks), inner_bytes)], axis=1
    )
    direct = np.array_equal(index[: len(chunks)], in_order)
    return payload_nbytes if direct and payload_nbytes == len(chunks) * inner_bytes else None


def corrupt(path: Path, expected: str, got: str, cure: str) -> StoreCorruptError:
    """Return the error for ``path``: one sentence with place, expected, found and fix."""
    return StoreCorruptError(f"{path}: expected {expected}, got {got}; {cure}")
