from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.store.content import content_sha256
from pipeline.store.errors import StoreCorruptError
from pipeline.store.reader import open_store
from pipeline.store.shard import shard_path
from pipeline.store.writer import create_store, finish_store
from tests.pipeline.stores import fill_shard, relist, toy_attributes, toy_jpegs, toy_store

LENGTHS = [100, 0, 2000, 30, 5]
SPLITS = {"train": np.array([3, 1]), "val": np.array([0])}


def hash_of(path: Path) -> str:
    store = open_store(path)
    try:
        return content_sha256(store)
    finally:
        store.close()


def test_hash_does_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    forward = toy_store(tmp_path / "a.zarr", LENGTHS, 2, splits=SPLITS)
    backward = toy_store(tmp_path / "b.zarr", LENGTHS, 2, splits=SPLITS, shard_order=[2, 1, 0])
    assert forward == backward
    assert forward.content_sha256 == hash_of(tmp_path / "a.zarr")


def test_hash_does_not_depend_on_shards_and_attributes(tmp_path: Path) -> None:
    first = toy_store(tmp_path / "a.zarr", LENGTHS, 2)
    path, attributes = tmp_path / "b.zarr", toy_attributes(5, 3, licence="other")
    create_store(path, attributes, {})
    for shard in range(2):
        fill_shard(path, shard, toy_jpegs(LENGTHS), attributes)
    assert finish_store(path, attributes).content_sha256 == first.content_sha256


def test_all_kinds_of_nan_are_one(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    before = toy_store(path, LENGTHS, 2).content_sha256
    array = zarr.open_array(path / "labels" / "joints_3d", mode="r+")
    values = np.array(array[...])
    values[np.isnan(values)] = np.uint32(0xFFC00001).view(np.float32)
    array[...] = values
    relist(path)
    assert np.signbit(np.asarray(array[...])[np.isnan(values)]).all()
    assert hash_of(path) == before


def flip_label(values: Any) -> None:
    values.flat[7] = ~values.flat[7]


def swap_rows(values: Any) -> None:
    values[:] = values[::-1].copy()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels/joint_valid", flip_label),
        ("labels/frame_idx", swap_rows),
        ("image/size_hw", swap_rows),
        ("splits/train", swap_rows),
    ],
)
def test_hash_sees_every_array(tmp_path: Path, name: str, change: Callable[[Any], None]) -> None:
    path = tmp_path / "a.zarr"
    before = toy_store(path, LENGTHS, 2, splits=SPLITS).content_sha256
    array = zarr.open_array(path / name, mode="r+")
    values = np.array(array[...])
    change(values)
    array[...] = values
    relist(path)
    assert hash_of(path) != before


def test_hash_sees_the_bytes_of_images(tmp_path: Path) -> None:
    hashes = set()
    for row in (None, 0, 4):
        path, attributes = tmp_path / f"{row}.zarr", toy_attributes(5, 2)
        jpegs = toy_jpegs(LENGTHS)
        if row is not None:
            jpegs[row] = bytes([jpegs[row][0] ^ 1]) + jpegs[row][1:]
        create_store(path, attributes, {})
        for shard in range(3):
            fill_shard(path, shard, jpegs, attributes)
        hashes.add(finish_store(path, attributes).content_sha256)
    assert len(hashes) == 3


def test_hash_checks_every_image(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    toy_store(path, LENGTHS, 2)
    with shard_path(path, 1).open("r+b") as file:
        file.write(b"\0")
    with pytest.raises(StoreCorruptError, match="for the image of row 2"):
        hash_of(path)
