import errno
import json
import mmap
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tensorstore as ts
import zarr
import zarr.codecs
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import reader as reader_module
from pipeline.store.errors import (
    StoreCorruptError,
    StoreError,
    StoreUnfinishedError,
    StoreVersionError,
)
from pipeline.store.image_bytes import Reader
from pipeline.store.reader import Store, open_store, read_attributes
from pipeline.store.schema import INNER_CHUNK_BYTES, LABELS
from pipeline.store.shard import crc32c, shard_path
from pipeline.store.writer import create_store, remove_store
from tests.pipeline.stores import (
    CAPACITY,
    COMMAND,
    relist,
    toy_attributes,
    toy_jpegs,
    toy_labels,
    toy_store,
)

MIB = 1 << 20
CHUNK = INNER_CHUNK_BYTES
CURE = f"; rebuild the store with: {COMMAND}"
READERS: tuple[Reader, ...] = get_args(Reader)
LENGTHS = [700_000, 0, 600_000, 5, 1_200_000, 0, 0, 0, 31]
"""Shards of two rows: the third has several inner chunks, the fourth no image, the last one row."""
SPLITS = {"train": np.array([5, 0, 3]), "val": np.array([], np.int64)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "toy.zarr"
    toy_store(path, LENGTHS, 2, splits=SPLITS)
    return path


@pytest.fixture
def path(built: Path, tmp_path: Path) -> Path:
    """A store to damage."""
    return Path(shutil.copytree(built, tmp_path / "toy.zarr"))


@contextmanager
def opened(path: Path, reader: Reader = "auto") -> Iterator[Store]:
    store = open_store(path, reader=reader)
    yield store
    store.close()


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def index_of(starts: list[int]) -> bytes:
    """The index of a shard whose first inner chunks lie at ``starts``."""
    entries = [number for start in starts for number in (start, CHUNK)]
    entries += [2**64 - 1] * (2 * CAPACITY // CHUNK - len(entries))
    index = struct.pack(f"<{len(entries)}Q", *entries)
    return index + crc32c(index).to_bytes(4, "little")


def edit(path: Path, **changes: Any) -> None:
    """Overwrite store attributes; None removes one."""
    file = path / "zarr.json"
    group = json.loads(file.read_text())
    attributes = {**group["attributes"]["handloom"], **changes}
    group["attributes"]["handloom"] = {k: v for k, v in attributes.items() if v is not None}
    file.write_text(json.dumps(group))


def assert_reads(path: Path, lengths: list[int], reader: Reader = "auto") -> None:
    with opened(path, reader) as store:
        jpegs = [bytes(store.jpeg_checked(row)) for row in range(len(lengths))]
        scanned = {row: bytes(jpeg) for row, jpeg in store.scan(range(len(lengths)))}
    assert jpegs == toy_jpegs(lengths)
    assert scanned == {row: jpeg for row, jpeg in enumerate(jpegs) if jpeg}


# Reading back.


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_returns_what_was_written(built: Path, reader: Reader) -> None:
    assert_reads(built, LENGTHS, reader)


@settings(max_examples=5, deadline=None)
@given(
    st.lists(
        st.sampled_from([0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, MIB + 1]), min_size=1, max_size=7
    ),
    st.integers(2, 4),
)
def test_round_trip(lengths: list[int], shard_rows: int) -> None:
    """Every second image is small: up to four rows fit into a shard."""
    lengths = [length if row % 2 else min(length, 1000) for row, length in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toy.zarr"
        toy_store(path, lengths, shard_rows)
        for reader in READERS:
            assert_reads(path, lengths, reader)
        with opened(path) as store:
            for name, expected in toy_labels(range(len(lengths))).items():
                found = store.label(name.removeprefix("labels/"))
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected, strict=True)
            index = store.image_index
    jpegs = toy_jpegs(lengths)
    assert index.length.tolist() == lengths
    assert index.crc32c.tolist() == [crc32c(jpeg) for jpeg in jpegs]
    assert index.size_hw.tolist() == [[row % 7, row % 5] for row in range(len(lengths))]
    assert index.offset.dtype == np.int64


def test_other_libraries_read_the_store_without_our_code(built: Path) -> None:
    group = zarr.open_group(built, mode="r")
    names = [name for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)]
    assert len(names) == len(LABELS) + 5 + len(SPLITS)
    expected = {
        "image/length": np.array(LENGTHS, np.uint32),
        "splits/train": SPLITS["train"].astype(np.int32),
        "splits/val": SPLITS["val"].astype(np.int32),
        **toy_labels(range(len(LENGTHS))),
    }
    found = {name: (read_zarr(built / name), read_tensorstore(built / name)) for name in names}
    for name, values in expected.items():
        for array in found[name]:
            np.testing.assert_array_equal(array, values, strict=True)
    for image_bytes, offsets in zip(found["image/bytes"], found["image/offset"], strict=True):
        for offset, jpeg in zip(offsets, toy_jpegs(LENGTHS), strict=True):
            assert image_bytes[offset : offset + len(jpeg)].tobytes() == jpeg


def read_zarr(folder: Path) -> Any:
    return np.asarray(zarr.open_array(folder, mode="r")[...])


def read_tensorstore(folder: Path) -> Any:
    kvstore = {"driver": "file", "path": str(folder)}
    return ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result().read().result()


def test_mmap_views_are_not_copies_and_outlive_the_store(built: Path) -> None:
    with opened(built, "mmap") as store:
        first, second = store.jpeg(0), store.jpeg(0)
    assert first.ctypes.data == second.ctypes.data
    assert bytes(first) == toy_jpegs(LENGTHS)[0]
    with pytest.raises(StoreError, match="closed"):
        store.jpeg(0)


@pytest.mark.parametrize("reader", READERS)
def test_bytes_and_arrays_are_read_only(built: Path, reader: Reader) -> None:
    with opened(built, reader) as store:
        arrays = [store.jpeg(0), store.label("K"), store.image_index.offset]
        arrays.extend(jpeg for _, jpeg in store.scan([2]))
    assert [array.flags.writeable for array in arrays] == [False] * 4


def test_a_row_outside_the_store_is_an_error(built: Path) -> None:
    with opened(built) as store:
        for row in (-1, 9):
            with pytest.raises(IndexError, match=rf"has rows 0\.\.8, got {row}"):
                store.jpeg(row)
            with pytest.raises(IndexError, match=rf"has rows 0\.\.8, got {row}"):
                list(store.scan([3, row, 4]))


def test_labels_are_read_once(built: Path) -> None:
    with opened(built) as store:
        assert store.label("theta") is store.label("theta")
        with pytest.raises(
            StoreError, match=r"unknown label 'pose'; choices: K, A_stored_from_raw"
        ):
            store.label("pose")


def test_splits_keep_their_order(built: Path) -> None:
    with opened(built) as store:
        assert store.split("train").tolist() == [5, 0, 3]
        assert store.split("val").tolist() == []
        assert store.split("all").tolist() == list(range(9))
        assert {store.split(name).dtype for name in ("train", "val", "all")} == {np.dtype("int32")}
        with pytest.raises(StoreError) as caught:
            store.split("test")
    assert str(caught.value) == (
        f"store {built} has no split 'test'; choices: all (9 rows), train (3 rows), val (0 rows)"
    )


@pytest.mark.parametrize("block_bytes", [1, 1 << 19, 8 << 20])
@pytest.mark.parametrize("gap_bytes", [0, 1 << 30])
def test_scan_yields_chosen_rows_in_store_order(
    built: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, gap_bytes: int
) -> None:
    monkeypatch.setattr(reader_module, "SCAN_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(reader_module, "SCAN_GAP_BYTES", gap_bytes)
    jpegs = toy_jpegs(LENGTHS)
    with opened(built, "pread") as store:
        scanned = [(row, bytes(jpeg)) for row, jpeg in store.scan([8, 2, 1, 3, 2, 0])]
        assert list(store.scan([])) == list(store.scan([1, 5])) == []
    assert scanned == [(row, jpegs[row]) for row in (0, 2, 2, 3, 8)]


def test_scan_reads_neighbours_together(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, int]] = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reads.append((offset, sum(buffer.nbytes for buffer in buffers)))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    with opened(built, "pread") as store:
        assert len(list(store.scan(range(9)))) == 5
    assert reads == [(0, 700_000), (0, 600_005), (0, 1_200_000), (0, 31)]


# Layouts of other tools.


def rewrite(path: Path, tool: str) -> None:
    """Read image/bytes and let another tool write it again, with its own order and codecs."""
    folder = path / "image" / "bytes"
    values = read_zarr(folder)
    metadata = json.loads((folder / "zarr.json").read_text())
    shutil.rmtree(folder)
    if tool == "tensorstore":
        kvstore = {"driver": "file", "path": str(folder)}
        keys = ("shape", "data_type", "chunk_grid", "codecs", "fill_value")
        spec = {
            "driver": "zarr3",
            "kvstore": kvstore,
            "metadata": {key: metadata[key] for key in keys},
        }
        ts.open(spec, create=True).result().write(values).result()
        relist(path)
        return
    options: dict[str, dict[str, Any]] = {
        "zarr-python": {},
        "index at the start": {"index_location": "start"},
        "inner checksum": {"codecs": [zarr.codecs.BytesCodec(), zarr.codecs.Crc32cCodec()]},
        "inner zstd": {"codecs": [zarr.codecs.BytesCodec(), zarr.codecs.ZstdCodec()]},
        "smaller chunks": {"chunk_shape": (4096,)},
    }
    if tool == "no shards":
        array = zarr.create_array(folder, shape=values.shape, chunks=(CHUNK,), dtype="uint8")
    else:
        sharding = zarr.codecs.ShardingCodec(**({"chunk_shape": (CHUNK,)} | options[tool]))
        array = zarr.create(
            store=folder, shape=values.shape, chunks=(CAPACITY,), dtype="uint8", codecs=[sharding]
        )
    array[...] = values
    relist(path)


@pytest.mark.parametrize("reader", ["auto", "zarr"])
@pytest.mark.parametrize(
    "tool",
    [
        "tensorstore",
        "zarr-python",
        "index at the start",
        "inner checksum",
        "inner zstd",
        "no shards",
    ],
)
def test_a_store_rewritten_by_another_tool_reads_the_same(
    path: Path, tool: str, reader: Reader
) -> None:
    rewrite(path, tool)
    assert_reads(path, LENGTHS, reader)


@pytest.mark.parametrize("tool", ["tensorstore", "zarr-python", "smaller chunks"])
def test_a_rewritten_store_in_file_order_is_still_mapped(path: Path, tool: str) -> None:
    rewrite(path, tool)
    assert_reads(path, LENGTHS, "mmap")


@pytest.mark.parametrize("tool", ["inner zstd", "index at the start", "no shards"])
def test_other_codecs_cannot_be_mapped(path: Path, tool: str) -> None:
    rewrite(path, tool)
    with pytest.raises(StoreError) as caught:
        open_store(path, reader="mmap", allow_unlisted=True)
    assert str(caught.value) == (
        f"reader=mmap cannot read the chunks and codecs of {path / 'image' / 'bytes'}; "
        "use reader=auto"
    )


def test_permuted_inner_chunks_are_read_through_zarr(path: Path) -> None:
    file = shard_path(path, 2)
    data, num_chunks = file.read_bytes(), -(-sum(LENGTHS[4:6]) // CHUNK)
    assert num_chunks > 1
    starts = [i * CHUNK for i in reversed(range(num_chunks))]
    chunks = [data[start : start + CHUNK] for start in starts]
    file.write_bytes(b"".join(chunks) + index_of(starts))
    relist(path)
    assert_reads(path, LENGTHS)
    for reader in ("mmap", "pread"):
        with pytest.raises(
            StoreError,
            match=f"reader={reader} cannot read the order of the inner chunks in {file}; use",
        ):
            open_store(path, reader=reader, allow_unlisted=True)


# Damage: one sentence with place, expected, found and cure.


def error_at_open(path: Path, kind: type[StoreError] = StoreCorruptError) -> str:
    with pytest.raises(StoreError) as caught:
        open_store(path, allow_unlisted=True)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 68, 500_000, -1])
@pytest.mark.parametrize("reader", READERS)
def test_a_truncated_shard(path: Path, reader: Reader, kept: int) -> None:
    file = shard_path(path, 1)
    os.truncate(file, kept % file.stat().st_size)
    with pytest.raises(StoreCorruptError) as caught:
        open_store(path, reader=reader, allow_unlisted=True)
    message = str(caught.value)
    assert message.startswith(f"{file}: expected ")
    assert ", got " in message
    assert message.endswith(CURE)


def test_a_shard_that_lost_an_inner_chunk(path: Path) -> None:
    file = shard_path(path, 2)
    file.write_bytes(file.read_bytes()[:CHUNK] + index_of([0]))
    assert error_at_open(path) == f"{file}: expected 1200000 bytes of images, got {CHUNK}{CURE}"


@pytest.mark.parametrize("position", [-1, -4, -5, -36, -68])
def test_a_flipped_byte_in_the_index_of_a_shard(path: Path, position: int) -> None:
    file = shard_path(path, 0)
    flip(file, position)
    message = error_at_open(path)
    assert message.startswith(f"{file}: expected an index with crc32c 0x")
    assert f"(truncated or damaged at {file.stat().st_size} bytes)" in message
    assert message.endswith(CURE)


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_byte_in_an_image(path: Path, reader: Reader) -> None:
    file, written = shard_path(path, 1), toy_jpegs(LENGTHS)[2]
    flip(file, 599_999)
    with opened(path, reader) as store:
        damaged = bytes(store.jpeg(2))
        with pytest.raises(StoreCorruptError) as caught:
            store.jpeg_checked(2)
        assert bytes(store.jpeg_checked(3)) == toy_jpegs(LENGTHS)[3]
    assert damaged[:-1] == written[:-1]
    assert str(caught.value) == (
        f"{file}: expected crc32c {crc32c(written):#010x} for the image of row 2, "
        f"got {crc32c(damaged):#010x}{CURE}"
    )


def test_a_missing_shard(path: Path) -> None:
    file = shard_path(path, 4)
    file.unlink()
    assert error_at_open(path) == f"{file}: expected 31 bytes of images, got no such file{CURE}"


@pytest.mark.parametrize("name", ["image/bytes", "image/crc32c"])
def test_a_missing_array(path: Path, name: str) -> None:
    shutil.rmtree(path / name)
    assert error_at_open(path) == f"{path / name}: expected a Zarr array, got nothing{CURE}"


def test_a_label_of_another_shape(path: Path) -> None:
    folder = path / "labels" / "beta"
    shutil.rmtree(folder)
    zarr.create_array(folder, shape=(9, 10), dtype="float64")
    relist(path)
    with pytest.raises(StoreCorruptError) as caught:
        open_store(path)
    assert str(caught.value) == f"{folder}: expected float32 (9, 2, 10), got float64 (9, 10){CURE}"


@pytest.mark.parametrize(
    ("offset", "sentence"),
    [
        (CAPACITY - 1, "row 2 within bytes 4194304..8388608, got 4194303..4794303"),
        (2 * CAPACITY - 7, "row 2 within bytes 4194304..8388608, got 8388601..8988601"),
        (CAPACITY + 6, "row 3 within bytes 4794310..8388608, got 4794304..4794309"),
    ],
    ids=["before its shard", "behind its shard", "over the next row"],
)
def test_a_row_outside_its_place(path: Path, offset: int, sentence: str) -> None:
    array = zarr.open_array(path / "image" / "offset", mode="r+")
    array[2] = offset
    assert error_at_open(path) == f"{path / 'image' / 'offset'}: expected {sentence}{CURE}"


def test_another_format_version(path: Path) -> None:
    edit(path, format=3, num_rows=None)  # another version may have other attributes
    assert error_at_open(path, StoreVersionError) == (
        f"store {path} has format version 3, this code reads 1; rebuild it with: {COMMAND}"
    )


def test_an_unfinished_store(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    create_store(path, toy_attributes(3, 2), {"train": np.arange(2)})
    assert error_at_open(path, StoreUnfinishedError) == (
        f"store {path} is not finished; finish it with: {COMMAND}"
    )
    store = open_store(path, allow_unfinished=True)
    assert store.split("train").tolist() == [0, 1]
    assert store.jpeg_checked(2).size == 0
    store.close()


def test_no_store(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    message = f"no store at {path}: expected the file {path / 'zarr.json'}"
    assert error_at_open(path, StoreError) == message
    path.mkdir()
    assert error_at_open(path, StoreError) == message


def test_a_zarr_group_of_somebody_else(tmp_path: Path) -> None:
    zarr.create_group(tmp_path, attributes={"multiscales": []})
    assert error_at_open(tmp_path, StoreError) == (
        f"{tmp_path} is no Handloom store: {tmp_path / 'zarr.json'} has no attribute 'handloom'"
    )


def test_damaged_attributes(path: Path) -> None:
    edit(path, licence=None, license="MIT")
    assert error_at_open(path) == (
        f"{path / 'zarr.json'}: expected the attributes of format 1, "
        f"got missing ['licence'], unknown ['license']; rebuild it with: {COMMAND}"
    )
    os.truncate(path / "zarr.json", 100)
    message = error_at_open(path)
    assert message.startswith(f"{path / 'zarr.json'}: expected JSON, got ")
    assert message.endswith("; rebuild the store")


def test_attributes_survive_the_round_trip(built: Path) -> None:
    attributes = read_attributes(built)
    expected = toy_attributes(9, 2, finished=True, content_sha256=attributes.content_sha256)
    assert attributes == expected


def test_an_unknown_reader(built: Path) -> None:
    with pytest.raises(StoreError, match="must be one of auto, mmap, pread, zarr, got 'oindex'"):
        open_store(built, reader="oindex")  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENODEV])
def test_where_shards_cannot_be_mapped_they_are_read(
    built: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert_reads(built, LENGTHS)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with pytest.raises(StoreError) as caught:
        open_store(built, reader="mmap")
    assert str(caught.value) == (
        f"reader=mmap cannot map the 4 shards of {built} ({os.strerror(number)}; this process may "
        f"open {limit} files); use reader=auto"
    )


MANY_SHARDS = """
import resource, sys
from pathlib import Path
from pipeline.store.reader import open_store
from tests.pipeline.stores import toy_jpegs, toy_store
soft, hard = map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
path = Path(sys.argv[1])
toy_store(path, [50] * 70, 1)
store = open_store(path)
written = toy_jpegs([50] * 70)
assert [bytes(store.jpeg_checked(row)) for row in range(70)] == written
assert [bytes(jpeg) for _, jpeg in store.scan(range(70))] == written
print(len(list(Path("/proc/self/fd").iterdir())), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "raised"), [(64, 64, 64), (64, 1024, 70 + 256)])
def test_a_store_of_more_shards_than_files_may_be_open(
    tmp_path: Path, soft: int, hard: int, raised: int
) -> None:
    """Written, finished and read: 70 shards where 64 files may be open."""
    words = [sys.executable, "-c", MANY_SHARDS, str(tmp_path / "many.zarr"), str(soft), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    num_open, *limits = map(int, done.stdout.split())
    assert limits == [raised, hard]
    assert (num_open > 70) == (hard > 64)


def test_a_store_exchanged_while_it_is_open(tmp_path: Path) -> None:
    """Mapped, it is read on as it was; read in parts, the exchange is named."""
    path = tmp_path / "toy.zarr"
    toy_store(path, [50, 60], 1)
    mapped, read = open_store(path, reader="mmap"), open_store(path, reader="pread")
    remove_store(path)
    toy_store(path, [70, 80], 1)
    assert [bytes(mapped.jpeg_checked(row)) for row in range(2)] == toy_jpegs([50, 60])
    with pytest.raises(
        StoreCorruptError, match=f"{shard_path(path, 0)}: .*the store was exchanged"
    ):
        read.jpeg(0)
