"""Verification finds every kind of damage, and nothing in a sound store."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from rich.console import Console

from pipeline.store.errors import StoreError, StoreUnfinishedError
from pipeline.store.reader import open_store
from pipeline.store.schema import ATTRIBUTE, FLAGS
from preprocess.builder.build import build
from preprocess.builder.verify import main, verify
from preprocess.config import BuildConfig, ImageCheck, ImageConfig, OnBadImage, VerifyConfig
from preprocess.records import SourceError
from tests.pipeline.stores import relist
from tests.preprocess.datasets import write_freihand, write_interhand, write_mano

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def without_mano_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with FreiHAND, MANO and the store of both: 14 rows in 4 shards."""
    folder = tmp_path_factory.mktemp("built")
    truth = write_freihand(folder, mano=write_mano(folder / "mano")["right"])
    config = BuildConfig(
        dataset="freihand",
        root=str(truth.root),
        out=str(folder / "store.zarr"),
        mano=str(folder / "mano"),
        shard_rows=4,
        workers=1,
    )
    build(config, console=QUIET)
    return folder


@pytest.fixture
def built(template: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return (root, store), a copy that the test may damage; MANO lies in ``tmp_path``."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "FreiHAND_pub_v2", tmp_path / "store.zarr"


def problems(store: Path, root: Path | None = None, mano: Path | None = None) -> list[str]:
    config = VerifyConfig(store=str(store))
    config.root = None if root is None else str(root)
    config.mano = None if mano is None else str(mano)
    return verify(config, console=QUIET).problems


def test_a_sound_store_has_no_problems(built: tuple[Path, Path], tmp_path: Path) -> None:
    root, store = built
    report = verify(VerifyConfig(store=str(store)), console=QUIET)
    assert report.problems == []
    assert report.num_rows == 14
    assert report.image_bytes == sum(f.stat().st_size for f in root.glob("*/rgb/*.jpg"))
    assert problems(store, root, tmp_path / "mano") == []


def test_flagged_images_and_two_hands_are_sound(tmp_path: Path) -> None:
    tables = write_interhand(tmp_path / "raw", splits=("train",))
    image = tables["train"]["data"]["images"][3]["file_name"]
    (tmp_path / "raw" / "images" / "train" / image).write_bytes(b"\xff\xd8")
    config = BuildConfig(
        dataset="interhand26m",
        root=str(tmp_path / "raw"),
        out=str(tmp_path / "store.zarr"),
        on_bad_image=OnBadImage.flag,
        workers=1,
    )
    store = build(config, console=QUIET).path
    assert problems(store, tmp_path / "raw") == []


def test_the_answer_is_the_exit_code(
    built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, store = built
    assert main(VerifyConfig(store=str(store))) == 0
    assert "no differences" in capsys.readouterr().out
    flip(store / "image/bytes/c/1", 100)
    assert main(VerifyConfig(store=str(store))) == 1
    assert "1 problems:" in capsys.readouterr().out


# --- damage ---------------------------------------------------------------------------------------


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def test_every_flipped_image_is_named(built: tuple[Path, Path]) -> None:
    _, path = built
    store = open_store(path)
    wanted = [2, 5, 13]
    for row in wanted:
        offset = int(store.image_index.offset[row]) % store.attributes.shard_capacity_bytes
        flip(path / f"image/bytes/c/{row // 4}", offset + 50)
    found = problems(path)
    assert len(found) == len(wanted)
    for row, problem in zip(wanted, found, strict=True):
        assert f"of row {row}," in problem
        assert "crc32c" in problem


def test_pixels_that_came_damaged_are_named(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path)
    image = truth.root / "training" / "rgb" / "00000004.jpg"
    image.write_bytes(image.read_bytes()[:-400] + b"\xff\xd9")
    config = BuildConfig(
        dataset="freihand",
        root=str(truth.root),
        out=str(tmp_path / "store.zarr"),
        workers=1,
        image=ImageConfig(check=ImageCheck.header),
    )
    store = build(config, console=QUIET).path
    (problem,) = problems(store)
    assert "the image cannot be decoded (Corrupt JPEG data: premature end" in problem
    unchecked = VerifyConfig(store=str(store), check=ImageCheck.header)
    assert verify(unchecked, console=QUIET).problems == []


def test_a_truncated_shard_is_a_problem(built: tuple[Path, Path]) -> None:
    _, store = built
    file = store / "image/bytes/c/2"
    file.write_bytes(file.read_bytes()[:-7])
    (problem,) = problems(store)
    assert str(file) in problem


def change(
    store: Path, name: str, edit: Callable[[np.ndarray], None], *, listed: bool = True
) -> None:
    array = zarr.open_array(store / name, mode="r+")
    values = np.asarray(array[...])
    edit(values)
    array[...] = values
    if listed:
        relist(store)


def set_at(index: object, value: object) -> Callable[[np.ndarray], None]:
    def edit(values: np.ndarray) -> None:
        values[index] = value  # type: ignore[call-overload]

    return edit


DAMAGE = {
    "size": ("image/size_hw", set_at(3, [64, 48]), "row 3: image/size_hw is [64, 48]"),
    "order": ("labels/frame_idx", set_at(0, 9), "rows are not sorted"),
    "official": ("labels/official_idx", set_at(1, 9), "official_idx is not a permutation"),
    "table": ("labels/camera_idx", set_at(-1, 1), "camera_idx is outside the table of 1 in 1 rows"),
    "joint": ("labels/joints_3d", set_at((6, 0, 4), np.nan), "joint_valid and finite joints_3d"),
    "valid": ("labels/joint_valid", set_at((6, 1, 4), value=True), "joint_valid and finite joints"),
    "has": ("labels/has_joints", set_at((2, 0), value=False), "has_joints and joint_valid differ"),
    "theta": ("labels/theta", set_at((2, 0, 5), np.nan), "has_mano and finite theta differ"),
    "rest": ("labels/root_rest", set_at((2, 0, 1), np.inf), "has_mano and finite root_rest differ"),
    "beta": ("labels/beta", set_at((2, 1), 0.0), "has_beta and finite beta differ"),
    "world": ("labels/has_world", set_at(5, value=True), "has_world and finite T_world"),
    "K": ("labels/K", set_at((5, 0, 0), np.nan), "K is not finite beside joints in 1 rows"),
    "ok": ("labels/sample_ok", set_at(8, value=False), "sample_ok and image/length differ"),
    "image flag": ("labels/quality", set_at(8, FLAGS["image_missing"]), "the image flags differ"),
    "rule": ("labels/quality", set_at(8, FLAGS["behind_camera"]), "flag behind_camera and"),
    "moved": ("labels/joints_3d", set_at((7, 0, 2, 0), 0.4), "bbox_xyxy is not the box"),
    "no box": ("labels/bbox_xyxy", set_at((7, 0), np.nan), "bbox_xyxy is missing in 1 rows"),
    "split": ("splits/val10", set_at(0, 14), "split val10 names rows"),
    "twice": ("splits/train_gs", set_at(0, 7), "split train_gs names a row twice"),
    "quiet": ("labels/subject_idx", set_at(0, 0), ""),
    "transl": ("labels/transl", set_at((4, 0, 2), 0.7), "content_sha256 is"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_changed_arrays_are_found(built: tuple[Path, Path], kind: str) -> None:
    _, store = built
    name, edit, words = DAMAGE[kind]
    if kind == "twice":
        rows = open_store(store).split("train_gs").tolist()
        edit = set_at(0, rows[1])
    change(store, name, edit)
    found = problems(store)
    if words:
        assert any(words in problem for problem in found), found
    else:
        assert found == []


def test_changed_counts_are_found(built: tuple[Path, Path]) -> None:
    _, store = built
    file = store / "zarr.json"
    group = json.loads(file.read_text())
    attributes = group["attributes"][ATTRIBUTE]
    attributes["flag_counts"]["no_label"] = 3
    attributes["found_counts"]["train"] = 11
    file.write_text(json.dumps(group))
    found = problems(store)
    assert any("flag_counts is" in problem for problem in found)
    assert "split train has 12 rows, found_counts says 11" in found


# --- against the raw dataset ----------------------------------------------------------------------


def test_a_changed_image_is_found(built: tuple[Path, Path], tmp_path: Path) -> None:
    root, store = built
    file = root / "training" / "rgb" / "00000005.jpg"
    data = bytearray(file.read_bytes())
    data[300] ^= 1
    file.write_bytes(data)
    row = int(np.flatnonzero(open_store(store).label("official_idx") == 5)[0])
    assert problems(store, root, tmp_path / "mano") == [f"row {row}: the image differs from {file}"]


def test_a_changed_label_is_found(built: tuple[Path, Path], tmp_path: Path) -> None:
    root, store = built
    path = root / "training_xyz.json"
    rows = json.loads(path.read_text())
    rows[1][3][2] += 1e-3
    path.write_text(json.dumps(rows))
    found = problems(store, root, tmp_path / "mano")
    assert any("labels/joints_3d differs from the raw dataset" in problem for problem in found)
    assert all("differs from the raw dataset" in problem for problem in found)


def test_another_dataset_is_found(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, store = built
    other = write_freihand(
        tmp_path / "other", num_unique=2, mano=write_mano(tmp_path / "mano2", seed=1)["right"]
    )
    found = problems(store, other.root, tmp_path / "mano2")
    assert any("the store has" in problem and "MANO" in problem for problem in found)
    assert any("has 10 rows or other names, the store has 14" in problem for problem in found)


def test_the_comparison_needs_the_mano_of_the_store(built: tuple[Path, Path]) -> None:
    root, store = built
    with pytest.raises(SourceError, match=r"was built with MANO; pass mano=FOLDER"):
        problems(store, root)


# --- stores that are none -------------------------------------------------------------------------


def test_no_store_and_unfinished_stores_are_errors(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    _, store = built
    with pytest.raises(StoreError, match=r"no store at"):
        problems(tmp_path / "nowhere")
    file = store / "zarr.json"
    group = json.loads(file.read_text())
    group["attributes"][ATTRIBUTE]["finished"] = False
    file.write_text(json.dumps(group))
    with pytest.raises(StoreUnfinishedError):
        problems(store)


def test_the_report_shows_at_most_twenty_problems(
    built: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = built
    report = verify(VerifyConfig(store=str(store)), console=QUIET)
    many = dataclasses.replace(report, problems=[f"problem {i}" for i in range(25)])
    monkeypatch.setattr("preprocess.builder.verify.verify", lambda _: many)
    assert main(VerifyConfig(store=str(store))) == 1
    out = capsys.readouterr().out
    assert "25 problems:" in out
    assert "problem 19" in out
    assert "problem 20" not in out
    assert "and 5 more" in out


def test_a_rewritten_store_gets_a_new_list_if_its_content_is_the_same(
    built: tuple[Path, Path],
) -> None:
    _, store = built
    folder = store / "labels" / "K"
    values = np.asarray(zarr.open_array(folder, mode="r")[...])
    shutil.rmtree(folder)
    zarr.create_array(folder, shape=values.shape, chunks=(5, 3, 3), dtype="float32")[...] = values
    (problem,) = problems(store)
    assert f"verify-cache store={store} relist=true" in problem
    report = verify(VerifyConfig(store=str(store), relist=True), console=Console(quiet=True))
    assert (report.problems, report.notes) == ([], ["the list of its files was written anew"])
    assert problems(store) == []
    change(store, "labels/beta_raw", set_at((0, 0, 0), 5.0), listed=False)
    report = verify(VerifyConfig(store=str(store), relist=True), console=Console(quiet=True))
    assert "content_sha256 is" in report.problems[0]
    assert problems(store) != []
