import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.store.errors import StoreError, StoreUnfinishedError
from pipeline.store.reader import open_store, read_attributes
from pipeline.store.schema import INNER_CHUNK_BYTES
from pipeline.store.shard import shard_path
from pipeline.store.writer import (
    MEMBERS,
    create_store,
    finish_store,
    foreign_files,
    remove_store,
    write_image_shard,
    write_rows,
)
from tests.pipeline.stores import (
    fill_shard,
    toy_attributes,
    toy_jpegs,
    toy_labels,
    toy_store,
)


def files_of(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


class Killed(BaseException):
    """The process is gone."""


@contextmanager
def crash_at(method: str) -> Iterator[None]:
    """The process dies after the last byte of a temporary file, at its ``Path.<method>``."""

    def die(self: Path, target: Path) -> Path:
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, method, die)
        with pytest.raises(Killed):
            yield


def test_a_new_store_is_unfinished_whatever_the_attributes_say(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    create_store(path, toy_attributes(3, 2, finished=True, content_sha256="x"), {})
    attributes = read_attributes(path, allow_unfinished=True)
    assert (attributes.finished, attributes.content_sha256) == (False, "")
    with pytest.raises(StoreUnfinishedError):
        read_attributes(path)


def test_create_store_refuses_a_store(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with pytest.raises(StoreError, match=f"{tmp_path} holds a store or part of one; remove it or"):
        create_store(tmp_path, toy_attributes(3, 2), {})


def test_create_store_lists_all_problems(tmp_path: Path) -> None:
    attributes = toy_attributes(3, 0, shard_capacity_bytes=5, format=9)
    splits: dict[str, Any] = {
        "all": np.arange(3),
        "a/b": np.arange(3),
        "late": np.array([3]),
        "early": np.array([-1, 0]),
        "float": np.zeros(2),
    }
    with pytest.raises(StoreError) as caught:
        create_store(tmp_path / "toy.zarr", attributes, splits)
    for part in (
        f"store {tmp_path / 'toy.zarr'}",
        "shard_rows must be positive, got 0",
        f"shard_capacity_bytes must be a multiple of {INNER_CHUNK_BYTES}, got 5",
        "format must be 1, got 9",
        "split 'all'",
        "split 'a/b'",
        "split 'late' must lie in 0..2, got 3..3",
        "split 'early' must lie in 0..2, got -1..0",
        "split 'float' must be a list of rows, got float64 (2,)",
    ):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_write_image_shard_counts_rows_and_bytes(tmp_path: Path) -> None:
    path, attributes = tmp_path / "toy.zarr", toy_attributes(3, 2)
    create_store(path, attributes, {})
    with pytest.raises(StoreError, match=f"shard 1 of {path} has 1 rows, got 2"):
        write_image_shard(path, 1, [b"a", b"b"], attributes)
    capacity = attributes.shard_capacity_bytes
    with pytest.raises(
        StoreError,
        match=f"shard 0 of {path} holds {capacity} bytes, got {capacity + 1}; plan a larger",
    ):
        write_image_shard(path, 0, [bytes(capacity), b"a"], attributes)
    offset, length, _ = write_image_shard(path, 0, [memoryview(bytes(capacity)), b""], attributes)
    assert (offset.tolist(), length.tolist()) == ([0, capacity], [capacity, 0])
    assert (str(offset.dtype), str(length.dtype)) == ("int64", "uint32")


def test_a_shard_without_images_has_no_file_even_after_one_with(tmp_path: Path) -> None:
    path, attributes = tmp_path / "toy.zarr", toy_attributes(3, 2)
    create_store(path, attributes, {})
    write_image_shard(path, 0, [b"a", b""], attributes)
    assert shard_path(path, 0).exists()
    offset, length, crc32c = write_image_shard(path, 0, [b"", b""], attributes)
    assert not shard_path(path, 0).exists()
    assert (offset.tolist(), length.tolist(), crc32c.tolist()) == ([0, 0], [0, 0], [0, 0])


def test_write_rows_lists_all_problems_and_writes_nothing(tmp_path: Path) -> None:
    path, attributes = tmp_path / "toy.zarr", toy_attributes(3, 2)
    create_store(path, attributes, {})
    before = files_of(path)
    columns: dict[str, Any] = {
        "labels/official_idx": np.zeros(1, np.int32),
        "labels/K": np.zeros((1, 3, 3)),
        "labels/theta": np.zeros((2, 2, 48), np.float32),
        "labels/bbox_xywh": np.zeros((1, 2, 4), np.float32),
    }
    with pytest.raises(StoreError) as caught:
        write_rows(path, 1, columns)
    assert str(caught.value) == (
        f"shard 1 of {path}: "
        "labels/K must be float32 (1, 3, 3), got float64 (1, 3, 3); "
        "labels/theta must be float32 (1, 2, 48), got float32 (2, 2, 48); "
        "unknown array 'labels/bbox_xywh', did you mean 'labels/bbox_xyxy'?"
    )
    assert files_of(path) == before


def test_rows_not_written_are_missing_values(tmp_path: Path) -> None:
    path, attributes = tmp_path / "toy.zarr", toy_attributes(3, 2)
    create_store(path, attributes, {})
    for shard, none in enumerate([[b"", b""], [b""]]):
        offset, length, _ = write_image_shard(path, shard, none, attributes)
        write_rows(path, shard, {"image/offset": offset, "image/length": length})
    write_rows(path, 1, {"labels/official_idx": np.array([7], np.int32)})
    finish_store(path, attributes)
    store = open_store(path)
    assert store.label("official_idx").tolist() == [-1, -1, 7]
    assert np.isnan(store.label("joints_3d")).all()
    assert not store.label("joint_valid").any()
    assert not store.label("quality").any()
    assert [store.jpeg_checked(row).size for row in range(3)] == [0, 0, 0]


def test_everything_is_on_the_disk_before_a_step_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, attributes = tmp_path / "toy.zarr", toy_attributes(3, 2)
    create_store(path, attributes, {})
    before, synced, fsync = files_of(path), [], os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    fill_shard(path, 1, toy_jpegs([10, 20, 30]), attributes)
    assert re.fullmatch(r"image/bytes/c/1\.[0-9a-f]{32}\.partial", synced[0])
    assert synced[1] == "image/bytes/c"
    new = set(files_of(path)) - set(before) - {"image/bytes/c/1"}
    assert {"labels/K/c.1.0.0", "image/crc32c/c.1"} <= new
    final = {re.sub(r"\.[0-9a-f]{32}\.partial$", "", name) for name in synced}
    assert new | {str(Path(name).parent) for name in new} <= final


def test_chunks_are_the_bytes_of_zarr_python(tmp_path: Path) -> None:
    """Full chunks, a short last one, and one in which every value is missing."""
    attributes = toy_attributes(5, 3)
    ours, theirs = tmp_path / "ours.zarr", tmp_path / "theirs.zarr"
    for path in (ours, theirs):
        create_store(path, attributes, {})
    for shard, rows in enumerate((range(3), range(3, 5))):
        columns = toy_labels(rows)
        columns["labels/theta"][:] = np.nan
        columns["labels/camera_idx"][:] = -1
        write_rows(ours, shard, columns)
        for name, values in columns.items():
            zarr.open_array(theirs / name, mode="r+")[rows.start : rows.stop] = values
    assert files_of(ours) == files_of(theirs)
    assert not (ours / "labels" / "theta" / "c.0.0.0").exists()
    assert (ours / "labels" / "K" / "c.1.0.0").exists()
    write_rows(ours, 0, {"labels/K": np.full((3, 3, 3), np.nan, np.float32)})
    assert not (ours / "labels" / "K" / "c.0.0.0").exists()


def test_a_crash_in_create_store_leaves_nothing_at_the_path(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    with crash_at("rename"):
        create_store(path, toy_attributes(3, 2), {})
    with pytest.raises(StoreError, match="no store at"):
        open_store(path)
    assert foreign_files(path) == []
    remove_store(path)
    create_store(path, toy_attributes(3, 2), {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.zarr"]
    assert sorted(entry.name for entry in path.iterdir()) == sorted(MEMBERS)


@pytest.mark.parametrize("renames", range(1, 6))
def test_a_removal_stopped_at_any_rename_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    path = tmp_path / "toy.zarr"
    toy_store(path, [10, 20, 30], 2)
    rename, left = Path.rename, [renames]

    def counted(file: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rename(file, target)

    def refuse(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(KeyboardInterrupt):
            remove_store(path)
    (path / "thesis.txt").touch()
    assert not (path / "zarr.json").exists()
    assert foreign_files(path) == ["thesis.txt"]
    remove_store(path)
    assert [entry.name for entry in path.iterdir()] == ["thesis.txt"]


def test_folders_with_the_names_of_ours_are_foreign_without_proof(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    assert foreign_files(tmp_path) == ["labels"]


def test_a_crash_before_the_rename_leaves_the_old_shard(tmp_path: Path) -> None:
    path, lengths = tmp_path / "toy.zarr", [10, 20, 30]
    attributes = toy_store(path, lengths, 2)
    before = files_of(path)
    with crash_at("replace"):
        write_image_shard(path, 0, [b"new", b"bytes"], attributes)
    (partial,) = (path / "image" / "bytes" / "c").glob("0.*.partial")
    name = str(partial.relative_to(path))
    assert {file: data for file, data in files_of(path).items() if file != name} == before
    assert [bytes(open_store(path).jpeg_checked(row)) for row in range(3)] == toy_jpegs(lengths)
    fill_shard(path, 0, toy_jpegs(lengths), attributes)
    partial.unlink()  # finish_store does
    assert files_of(path) == before


def test_a_crash_in_finish_store_leaves_an_unfinished_store(tmp_path: Path) -> None:
    whole = tmp_path / "whole.zarr"
    finished = toy_store(whole, [10, 20, 30], 2)
    path, attributes = tmp_path / "toy.zarr", toy_attributes(3, 2)
    create_store(path, attributes, {})
    for shard in range(2):
        fill_shard(path, shard, toy_jpegs([10, 20, 30]), attributes)
    (path / "labels" / "K" / f"c.0.{5:032x}.partial").write_bytes(b"left by a killed zarr-python")
    with crash_at("replace"):
        finish_store(path, attributes)
    with pytest.raises(StoreUnfinishedError):
        open_store(path)
    assert finish_store(path, attributes) == finished
    assert files_of(path) == files_of(whole)


def test_finish_store_refuses_another_layout(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    create_store(path, toy_attributes(3, 2), {})
    with pytest.raises(StoreError, match=f"{path} was created with shard_rows=2, got 3"):
        finish_store(path, toy_attributes(3, 3))


def test_finish_store_keeps_what_the_build_learned(tmp_path: Path) -> None:
    path = tmp_path / "toy.zarr"
    create_store(path, toy_attributes(3, 2), {})
    finish_store(path, toy_attributes(3, 2, flag_counts={"no_label": 2}, extra={"note": [1]}))
    attributes = read_attributes(path)
    assert attributes.flag_counts == {"no_label": 2}
    assert attributes.extra == {"note": [1]}
    assert len(attributes.content_sha256) == 64
    assert json.loads((path / "zarr.json").read_text())["node_type"] == "group"
