"""Pictures beside the images: what is written is read, by us and by zarr-python."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.store.content import content_sha256
from pipeline.store.errors import StoreError
from pipeline.store.pictures import picture_files, read_picture, rows_per_file, write_pictures
from pipeline.store.reader import open_store
from pipeline.store.writer import create_store, finish_store
from tests.pipeline.stores import fill_shard, toy_attributes, toy_jpegs

HW = (6, 8)
LENGTHS = [10, 20, 30, 40, 50]


def pictures(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 65535, HW, dtype=np.uint16) for _ in LENGTHS]


def store_with(path: Path, depth: Sequence[np.ndarray | None]) -> Path:
    attributes = toy_attributes(len(LENGTHS), 3)
    create_store(path, attributes, {}, pictures={"depth_mm": HW})
    for shard, rows in enumerate((slice(0, 3), slice(3, 5))):
        fill_shard(path, shard, toy_jpegs(LENGTHS), attributes)
        write_pictures(path, shard, "depth_mm", iter(depth[rows]), attributes)
    finish_store(path, attributes)
    return path


@pytest.mark.parametrize(
    ("shard_rows", "rows"), [(2048, 64), (64, 64), (65, 13), (67, 1), (20, 20), (1, 1)]
)
def test_a_file_holds_up_to_64_rows_of_one_shard(shard_rows: int, rows: int) -> None:
    assert rows_per_file(shard_rows) == rows
    assert shard_rows % rows == 0


def test_pictures_come_back(tmp_path: Path) -> None:
    depth: list[np.ndarray | None] = [*pictures(0)]
    depth[1] = None
    path = store_with(tmp_path / "s.zarr", depth)
    array = np.asarray(zarr.open_array(path / "labels" / "depth_mm", mode="r")[...])
    for row, picture in enumerate(depth):
        expected = np.zeros(HW, np.uint16) if picture is None else picture
        np.testing.assert_array_equal(read_picture(path, "depth_mm", row), expected)
        np.testing.assert_array_equal(array[row], expected)
    attributes = toy_attributes(len(LENGTHS), 3)
    files = [f for shard in (0, 1) for f in picture_files("depth_mm", shard, attributes)]
    found = sorted(
        str(p.relative_to(path)) for p in (path / "labels/depth_mm/c").rglob("*") if p.is_file()
    )
    assert sorted(files) == found


def test_pictures_count_for_the_content(tmp_path: Path) -> None:
    first = pictures(0)
    other = [*first]
    other[4] = other[4] ^ np.uint16(1)
    hashes = {
        content_sha256(open_store(store_with(tmp_path / f"{i}.zarr", [*depth])))
        for i, depth in enumerate((first, other, first))
    }
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((6, 9), np.uint16), r"row 0 must be uint16 \(6, 8\), got uint16 \(6, 9\)"),
        (np.zeros(HW, np.int32), r"row 0 must be uint16 \(6, 8\), got int32 \(6, 8\)"),
    ],
)
def test_another_kind_of_picture_is_refused(
    tmp_path: Path, picture: np.ndarray, words: str
) -> None:
    with pytest.raises(StoreError, match=words):
        store_with(tmp_path / "s.zarr", [picture] * 5)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="row 2 must be"):
        store_with(tmp_path / "s.zarr", [*pictures(0)][:2])


def test_a_store_without_them_says_how_to_get_them(tmp_path: Path) -> None:
    path, attributes = tmp_path / "s.zarr", toy_attributes(5, 3)
    create_store(path, attributes, {})
    with pytest.raises(StoreError, match="build it with depth=true"):
        read_picture(path, "depth_mm", 0)
    with pytest.raises(StoreError, match="unknown pictures 'normals'; choices: depth_mm"):
        create_store(tmp_path / "t.zarr", attributes, {}, pictures={"normals": HW})
