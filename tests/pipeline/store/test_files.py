"""The list of a store's files: copies in part, mixed copies, damaged chunks."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.store.errors import StoreCorruptError
from pipeline.store.files import FILE
from pipeline.store.reader import open_store
from pipeline.store.schema import IMAGE_INDEX, LABELS
from tests.pipeline.stores import toy_store

LENGTHS = [3000, 0, 70, 500, 9]
NAMES = [f"image/{spec.name}" for spec in IMAGE_INDEX] + [f"labels/{spec.name}" for spec in LABELS]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "toy.zarr"
    toy_store(path, LENGTHS, 2, splits={"train": np.array([4, 0])})
    return path


@pytest.fixture
def path(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy.zarr"))


def refusal(path: Path) -> str:
    with pytest.raises(StoreCorruptError) as caught:
        open_store(path)
    return str(caught.value)


def test_no_file_can_be_left_out(path: Path) -> None:
    files = [f for f in path.rglob("*") if f.is_file() and f != path / "zarr.json"]
    assert {f"{f.parent.relative_to(path)}" for f in files} >= {*NAMES, "splits/train"}
    for file in files:
        aside = file.rename(path / "aside")
        message = refusal(path)
        aside.rename(file)
        assert str(file.relative_to(path)) in message
        assert "rebuild the store with: python -m preprocess build-cache" in message
    open_store(path).close()


def test_a_truncated_file_is_found_by_its_size(path: Path) -> None:
    file = path / "labels/theta/c.1.0.0"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    assert refusal(path).startswith(f"{file}: expected {size} bytes, got {size - 1}; copy the ")


@pytest.mark.parametrize("name", ["labels/K/c.1.0.0", "splits/train/c/0"])
def test_a_flipped_bit_is_found_when_it_is_read(path: Path, name: str) -> None:
    file = path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    store = open_store(path)
    with pytest.raises(StoreCorruptError, match=f"{file}: expected crc32c 0x.*, got 0x"):
        store.label("K") if "K" in name else store.split("train")
    assert [file.name in sentence for sentence in store.damaged_files()] == [True]
    store.close()


def test_a_flipped_bit_of_metadata_is_found_at_open(path: Path) -> None:
    file = path / "labels/K/zarr.json"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert f"{file}: expected crc32c 0x" in refusal(path)


def test_a_chunk_that_the_build_did_not_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    toy_store(path, [5, 5], 1)
    theirs = path / "labels/K/c.7.0.0"
    theirs.write_bytes(b"")  # of no row
    open_store(path).close()
    (path / "labels/K/c.0.0.0").replace(theirs)
    assert "lacks 1 of its" in refusal(path)


def test_a_list_of_another_store_is_refused(path: Path, tmp_path: Path) -> None:
    toy_store(tmp_path / "other.zarr", [5], 1)
    shutil.copy(tmp_path / "other.zarr" / FILE, path / FILE)
    assert f"{path / FILE}: expected the files of content " in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: json.dumps(json.loads(text) | {"folders": {"labels/K": {"c.0": ["1", 2]}}}),
        lambda text: json.dumps(json.loads(text) | {"folders": {"labels/K": 3}}),
    ],
    ids=["cut", "deep", "a list", "sizes", "folders"],
)
def test_a_damaged_list_is_one_sentence(path: Path, change: Callable[[str], str]) -> None:
    (path / FILE).write_text(change((path / FILE).read_text()))
    assert refusal(path).startswith(f"{path / FILE}: expected the list of the store's files, got ")


def test_files_of_the_desktop_are_no_chunks(path: Path) -> None:
    for name in ("labels/K/.DS_Store", "labels/._K", ".directory"):
        (path / name).touch()
    open_store(path).close()
