import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.errors import StoreCorruptError
from pipeline.store.schema import INNER_CHUNK_BYTES
from pipeline.store.shard import (
    crc32c,
    num_shards,
    prove_shard,
    rows_of_shard,
    shard_bytes,
    shard_tail,
)
from tests.pipeline.stores import toy_attributes

CHUNK = INNER_CHUNK_BYTES
ABSENT = struct.pack("<QQ", 2**64 - 1, 2**64 - 1)


def crc32c_by_bits(data: bytes) -> int:
    """Castagnoli polynomial, bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def index_of(*entries: bytes) -> bytes:
    index = b"".join(entries)
    return index + struct.pack("<I", crc32c_by_bits(index))


def test_crc32c_is_castagnoli_for_every_kind_of_buffer() -> None:
    data = b"123456789"
    assert crc32c(data) == crc32c_by_bits(data) == 0xE3069283
    assert crc32c(memoryview(data)) == crc32c(np.frombuffer(data, np.uint8)) == 0xE3069283
    assert crc32c(b"") == crc32c(memoryview(b"")) == crc32c(np.empty(0, np.uint8)) == 0


def test_tail_is_padding_then_index_then_crc() -> None:
    tail = shard_tail(CHUNK + 5, 4 * CHUNK)
    index = index_of(struct.pack("<QQ", 0, CHUNK), struct.pack("<QQ", CHUNK, CHUNK), ABSENT, ABSENT)
    assert tail == bytes(CHUNK - 5) + index
    assert shard_bytes(CHUNK + 5, 4 * CHUNK) == CHUNK + 5 + len(tail)


def test_tail_of_a_full_shard_has_no_padding() -> None:
    assert len(shard_tail(4 * CHUNK, 4 * CHUNK)) == 4 * 16 + 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4 * CHUNK))
def test_a_written_shard_is_proved(payload_nbytes: int) -> None:
    with tempfile.NamedTemporaryFile() as opened:
        opened.write(bytes(payload_nbytes) + shard_tail(payload_nbytes, 4 * CHUNK))
        opened.flush()
        proved = prove_shard(Path(opened.name), 4 * CHUNK)
    assert proved == -(-payload_nbytes // CHUNK) * CHUNK


@pytest.mark.parametrize(
    ("entries", "chunks"),
    [
        pytest.param([(CHUNK, CHUNK), (0, CHUNK)], 2, id="another order"),
        pytest.param([None, (0, CHUNK)], 1, id="absent chunk before a present one"),
        pytest.param([(0, CHUNK), (2 * CHUNK, CHUNK)], 3, id="hole"),
        pytest.param([(0, CHUNK)], 2, id="unused bytes before the index"),
        pytest.param([(0, CHUNK), (0, CHUNK)], 1, id="shared bytes"),
        pytest.param([(0, CHUNK), (CHUNK, 5)], 2, id="short chunk"),
    ],
)
def test_another_legal_layout_is_not_proved(
    tmp_path: Path, entries: list[tuple[int, int] | None], chunks: int
) -> None:
    packed = [struct.pack("<QQ", *entry) if entry else ABSENT for entry in entries]
    file = tmp_path / "0"
    file.write_bytes(bytes(chunks * CHUNK) + index_of(*packed, *[ABSENT] * (4 - len(packed))))
    assert prove_shard(file, 4 * CHUNK) is None


@pytest.mark.parametrize(
    "entry", [(CHUNK, CHUNK), (0, CHUNK + 1), (2**64 - CHUNK, CHUNK), (2**64 - 2, 1)]
)
def test_a_chunk_behind_the_payload_is_corrupt(tmp_path: Path, entry: tuple[int, int]) -> None:
    file = tmp_path / "0"
    file.write_bytes(bytes(CHUNK) + index_of(struct.pack("<QQ", *entry), ABSENT, ABSENT, ABSENT))
    with pytest.raises(StoreCorruptError) as caught:
        prove_shard(file, 4 * CHUNK, cure="rebuild it")
    assert str(caught.value) == (
        f"{file}: expected inner chunks within {CHUNK} bytes, got one behind them; rebuild it"
    )


@pytest.mark.parametrize("kept", [0, 3, 67])
def test_a_file_shorter_than_its_index_is_corrupt(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "0"
    file.write_bytes(bytes(kept))
    with pytest.raises(StoreCorruptError) as caught:
        prove_shard(file, 4 * CHUNK, cure="rebuild it")
    assert str(caught.value) == f"{file}: expected at least 68 bytes, got {kept}; rebuild it"


def test_rows_of_shards_cover_every_row_once() -> None:
    attributes = toy_attributes(10, 4)
    rows = [list(rows_of_shard(attributes, shard)) for shard in range(num_shards(attributes))]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(IndexError, match=r"shard must lie in 0\.\.2, got 3"):
        rows_of_shard(attributes, 3)
