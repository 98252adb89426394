import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.store.errors import StoreCorruptError, StoreError
from pipeline.store.objects import (
    ObjectShape,
    acted_on,
    object_names,
    read_object,
    write_object,
)
from pipeline.store.reader import open_store
from pipeline.store.schema import ATTRIBUTE, OBJECT_ARRAYS
from tests.pipeline.hand_store import hand_store
from tests.pipeline.stores import COMMAND, toy_attributes
from tests.shapes import unchecked


def object_shape(name: str = "025_mug", seed: int = 0, **changes: Any) -> ObjectShape:
    rng = np.random.default_rng(seed)
    half_turn = np.concatenate([np.diag([-1.0, -1.0, 1.0]), rng.random((3, 1))], axis=1)
    shape = ObjectShape(
        name=name,
        diameter_m=0.1 + seed,
        points=rng.random((2048, 3)).astype(np.float32),
        normals=rng.random((2048, 3)).astype(np.float32),
        part_id=rng.integers(0, 2, 2048).astype(np.int8),
        symmetries=np.stack([np.eye(3, 4), half_turn]).astype(np.float32),
        sdf=rng.random((64, 64, 64)).astype(np.float16),
        sdf_box=np.array([[-0.1, -0.2, 0.0], [0.2, 0.1, 0.3]], np.float32),
        vertices=rng.random((50, 3)).astype(np.float32),
        vertex_part=rng.integers(0, 2, 50).astype(np.int8),
        faces=rng.integers(0, 50, (90, 3)).astype(np.int32),
    )
    with unchecked():  # a test may want a wrong one
        return dataclasses.replace(shape, **changes)


def _store(path: Path, *shapes: ObjectShape) -> Path:
    attributes = {ATTRIBUTE: dataclasses.asdict(toy_attributes(4, 2))}
    group = zarr.create_group(path, attributes=attributes).create_group("objects")
    for shape in shapes:
        write_object(group, shape)
    return path


def _chunk(path: Path, array: str, name: str = "025_mug") -> Path:
    (chunk,) = (f for f in (path / "objects" / name / array / "c").rglob("*") if f.is_file())
    return chunk


def test_a_shape_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = object_shape()
    found = read_object(_store(tmp_path / "s", object_shape("b", 1), written), "025_mug")
    assert (found.name, found.diameter_m) == ("025_mug", 0.1)
    for name, dtype, _, _ in OBJECT_ARRAYS:
        assert getattr(found, name).dtype == dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))


def test_plain_zarr_reads_a_shape(tmp_path: Path) -> None:
    group = zarr.open_group(
        _store(tmp_path / "s", object_shape()) / "objects" / "025_mug", mode="r"
    )
    assert group.attrs["diameter_m"] == 0.1
    np.testing.assert_array_equal(np.asarray(group["sdf"]), object_shape().sdf)


def test_every_array_is_one_chunk(tmp_path: Path) -> None:
    path = _store(tmp_path / "s", object_shape())
    for name, *_ in OBJECT_ARRAYS:
        array = zarr.open_array(path / "objects" / "025_mug" / name, mode="r")
        assert array.chunks == array.shape


def test_the_same_shape_gives_the_same_files(tmp_path: Path) -> None:
    first, second = _store(tmp_path / "a", object_shape()), _store(tmp_path / "b", object_shape())
    files = sorted(f.relative_to(first) for f in first.rglob("*") if f.is_file())
    assert len(files) == 2 + 1 + 2 * len(OBJECT_ARRAYS)
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_names_are_sorted_and_a_store_without_objects_has_none(tmp_path: Path) -> None:
    assert object_names(_store(tmp_path / "s", object_shape("b"), object_shape("a", 1))) == (
        "a",
        "b",
    )
    assert object_names(tmp_path) == ()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "ä"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="its name must be letters"):
        _store(tmp_path / "s", object_shape(name))


def test_an_object_is_written_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="'025_mug': the store has it already"):
        _store(tmp_path / "s", object_shape(), object_shape())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.zeros((2047, 3), np.float32)}, r"points must be float32 \(2048, 3\), got"),
        ({"sdf": np.zeros((64, 64, 64), np.float32)}, r"sdf must be float16 .* got float32"),
        ({"vertices": np.zeros((0, 3), np.float32)}, r"vertices must be float32 \(n, 3\), got"),
        ({"vertices": np.full((50, 3), np.nan, np.float32)}, "vertices must be finite"),
        ({"faces": np.full((9, 3), 50, np.int32)}, r"faces must lie in 0\.\.49, got 50\.\.50"),
        ({"faces": np.full((9, 3), -1, np.int32)}, r"faces must lie in 0\.\.49, got -1\.\.-1"),
        ({"part_id": np.full(2048, -1, np.int8)}, "part_id and vertex_part must be 0 or 1"),
        ({"vertex_part": np.full(50, 2, np.int8)}, "part_id and vertex_part must be 0 or 1"),
        ({"vertex_part": np.zeros(49, np.int8)}, "vertex_part must have 50 values, got 49"),
        ({"diameter_m": 0.0}, "diameter_m must be positive metres, got 0.0"),
        ({"diameter_m": float("nan")}, "diameter_m must be positive metres, got nan"),
        ({"symmetries": np.ones((1, 3, 4), np.float32)}, "begin with the identity"),
        (
            {"symmetries": np.stack([np.eye(3, 4), -np.eye(3, 4)]).astype(np.float32)},
            "symmetries must be rotations, 1 are not",
        ),
        ({"sdf_box": np.array([[0, 0, 0], [1, 1, 2]], np.float32)}, "sdf_box must span a cube"),
        ({"sdf_box": np.array([[1, 1, 1], [0, 0, 0]], np.float32)}, "sdf_box must span a cube"),
    ],
)
def test_a_shape_that_is_not_the_schemas_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        _store(tmp_path / "s", object_shape(**changes))


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    wrong = object_shape("a/b", points=np.zeros((1, 3), np.float32), diameter_m=-1.0)
    with pytest.raises(StoreError, match=r"'a/b': its name .*; points must .*; diameter_m must"):
        _store(tmp_path / "s", wrong)


def test_a_refused_shape_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        _store(tmp_path / "s", object_shape(diameter_m=-1.0))
    assert object_names(tmp_path / "s") == ()


def test_an_unknown_object_is_answered_with_the_choices(tmp_path: Path) -> None:
    path = _store(tmp_path / "s", object_shape(), object_shape("024_bowl", 1))
    with pytest.raises(
        StoreError, match=r"no object '25_mug', did you mean '025_mug'\?; objects: "
    ):
        read_object(path, "25_mug")
    with pytest.raises(StoreError, match="objects: none"):
        read_object(_store(tmp_path / "t"), "x")


@pytest.mark.parametrize("array", [name for name, *_ in OBJECT_ARRAYS])
@pytest.mark.parametrize("damage", ["flipped", "cut", "removed", "array gone"])
def test_damage_is_found_and_named(tmp_path: Path, array: str, damage: str) -> None:
    path = _store(tmp_path / "s", object_shape())
    chunk = _chunk(path, array)
    data = bytearray(chunk.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    elif damage == "cut":
        chunk.write_bytes(data[: len(data) // 2])
    elif damage == "removed":
        chunk.unlink()
    else:
        (path / "objects" / "025_mug" / array / "zarr.json").unlink()
    with pytest.raises(StoreCorruptError, match="025_mug") as raised:
        read_object(path, "025_mug")
    assert COMMAND in str(raised.value)


def test_a_lost_diameter_is_found(tmp_path: Path) -> None:
    path = _store(tmp_path / "s", object_shape())
    zarr.open_group(path / "objects" / "025_mug", mode="r+").attrs.clear()
    with pytest.raises(StoreCorruptError, match=COMMAND):
        read_object(path, "025_mug")


# --- the object that the hands act on ------------------------------------------------------------


@pytest.mark.parametrize(
    ("grasped", "contact", "expected"),
    [
        (2, (-1, -1), 2),
        (2, (0, 0), 2),
        (1, (0, 2), 0),  # the grasped one has no pose: the right hand's
        (-1, (-1, 2), 2),
        (-1, (5, 2), 2),
        (-1, (-1, -1), 0),
    ],
)
def test_the_acted_on_object(
    tmp_path: Path, grasped: int, contact: tuple[int, int], expected: int
) -> None:
    posed = np.isin(np.arange(10), [0, 2])
    store = open_store(
        hand_store(
            tmp_path / "s.zarr",
            2,
            has_object=posed,
            grasped_object=np.array(grasped),
            contact_object=np.array(contact),
            has_contact=np.array(contact) >= 0,
        )
    )
    assert acted_on(store, np.array([1])).tolist() == [expected]


def test_without_a_posed_object_there_is_none(tmp_path: Path) -> None:
    store = open_store(
        hand_store(
            tmp_path / "s.zarr",
            2,
            has_object=np.zeros(10, bool),
            grasped_object=np.array(1),
            contact_object=np.array([1, 1]),
            has_contact=np.ones(2, bool),
        )
    )
    assert acted_on(store, np.arange(2)).tolist() == [-1, -1]
