"""The plan against Python's own sorting and summing."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.hand import JointSet
from pipeline.store.schema import INNER_CHUNK_BYTES as INNER
from preprocess.builder.plan import StorePlan, make_plan
from preprocess.records import DatasetSource, Rows, SourceError, empty_labels, job_of


def source(root: Path, num: int = 50, *, file_bytes: int = 10) -> DatasetSource:
    """Return a source with shuffled names and a file for most rows."""
    rng = np.random.default_rng(0)
    rows = Rows(
        image=[f"i/{i}.jpg" for i in range(num)],
        sequence=[f"s{rng.integers(3)}" for _ in range(num)],
        camera=[f"c{rng.integers(2)}" for _ in range(num)],
        subject=[f"u{i % 2}" for i in range(num)],
        frame_idx=rng.integers(0, 4, num).astype(np.int32),
    )
    (root / "i").mkdir(exist_ok=True)
    for i in range(num):
        if i != 7:
            (root / rows.image[i]).write_bytes(bytes(file_bytes + i))
    return DatasetSource(
        dataset="toy",
        joint_set=JointSet.smplx,
        licence="",
        citation="",
        official_counts={},
        root=root,
        rows=rows,
        splits={"odd": np.arange(1, num, 2)[::-1], "none": np.arange(0)},
        label_job=functools.partial(job_of, lambda _: empty_labels()),
    )


def test_rows_are_sorted_and_stay_together(tmp_path: Path) -> None:
    toy = source(tmp_path)
    plan = make_plan(toy, shard_rows=8)
    rows = toy.rows
    expected = sorted(
        range(len(rows)),
        key=lambda i: (rows.sequence[i], rows.camera[i], int(rows.frame_idx[i]), i),
    )
    assert plan.official_idx.tolist() == expected
    for row, i in enumerate(expected):
        assert plan.image[row] == rows.image[i]
        assert plan.tables["sequence"][plan.sequence_idx[row]] == rows.sequence[i]
        assert plan.tables["camera"][plan.camera_idx[row]] == rows.camera[i]
        assert plan.tables["subject"][plan.subject_idx[row]] == rows.subject[i]
        assert plan.frame_idx[row] == rows.frame_idx[i]
        assert plan.image_bytes[row] == (0 if i == 7 else 10 + i)


def test_splits_keep_their_official_order(tmp_path: Path) -> None:
    toy = source(tmp_path)
    plan = make_plan(toy, shard_rows=8)
    assert [plan.image[row] for row in plan.splits["odd"]] == [
        f"i/{i}.jpg" for i in range(49, 0, -2)
    ]
    assert plan.splits["odd"].dtype == np.int32
    assert len(plan.splits["none"]) == 0


@pytest.mark.parametrize("shard_rows", [1, 7, 8, 49, 50, 2048])
def test_every_shard_fits_its_capacity(tmp_path: Path, shard_rows: int) -> None:
    plan = make_plan(source(tmp_path, file_bytes=90_000), shard_rows=shard_rows)
    assert plan.shard_rows == min(shard_rows, 50)
    sizes = plan.image_bytes.tolist()
    shards = [sizes[i : i + plan.shard_rows] for i in range(0, 50, plan.shard_rows)]
    assert plan.num_shards == len(shards)
    largest = max(map(sum, shards))
    assert plan.shard_capacity_bytes == -(-largest // INNER) * INNER
    covered = [row for s in range(plan.num_shards) for row in range(50)[plan.rows_of_shard(s)]]
    assert covered == list(range(50))


def test_a_dataset_without_any_file_still_has_rows(tmp_path: Path) -> None:
    toy = replace(source(tmp_path), root=tmp_path / "gone")
    plan = make_plan(toy, shard_rows=8)
    assert plan.num_rows == 50
    assert plan.image_bytes.sum() == 0
    assert plan.shard_capacity_bytes == INNER


def test_the_hash_sees_every_part(tmp_path: Path) -> None:
    toy = source(tmp_path)

    def sha256(changed: DatasetSource, shard_rows: int = 8) -> str:
        return make_plan(changed, shard_rows=shard_rows).sha256

    first = sha256(toy)
    assert sha256(toy) == first
    others = [
        sha256(toy, 9),
        sha256(replace(toy, dataset="other")),
        sha256(replace(toy, splits={**toy.splits, "none": np.arange(1)})),
        sha256(
            replace(toy, splits={"renamed" if n == "odd" else n: v for n, v in toy.splits.items()})
        ),
        sha256(replace(toy, rows=replace(toy.rows, frame_idx=toy.rows.frame_idx + np.int32(1)))),
        sha256(replace(toy, rows=replace(toy.rows, subject=["u0"] * 50))),
        sha256(replace(toy, rows=replace(toy.rows, image=[*toy.rows.image[:-1], "i/7.jpg"]))),
    ]
    (tmp_path / "i" / "3.jpg").write_bytes(bytes(14))
    others.append(sha256(toy))
    assert len({first, *others}) == 1 + len(others)


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    toy = source(tmp_path)
    nothing = np.zeros(0, np.int32)
    empty = Rows(image=[], sequence=[], camera=[], subject=[], frame_idx=nothing)
    with pytest.raises(SourceError, match=r"toy: .* lists no images"):
        make_plan(replace(toy, rows=empty, splits={}), shard_rows=8)


def test_a_split_outside_the_rows_is_refused(tmp_path: Path) -> None:
    toy = replace(source(tmp_path), splits={"bad": np.array([0, 50])})
    with pytest.raises(SourceError, match=r"split 'bad' names rows 0..50, expected 0..49"):
        make_plan(toy, shard_rows=8)


def test_a_row_is_in_one_shard(tmp_path: Path) -> None:
    plan: StorePlan = make_plan(source(tmp_path), shard_rows=8)
    assert plan.rows_of_shard(6) == slice(48, 50)
