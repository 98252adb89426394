"""DexYCB's files from hostile or careless hands: each is named in one sentence, nothing runs."""

import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.mano.files import ManoModels, load_mano
from preprocess.records import LabelStack, SourceError
from preprocess.sources.dexycb.source import open_source
from tests.preprocess.datasets import png_of_claimed_size, write_mano
from tests.preprocess.sources.dexycb.tree import SERIALS, SUBJECTS, Arrays, tiny_specs, write_dexycb

ONE = tiny_specs()[1]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arrays]:
    return write_mano(tmp_path_factory.mktemp("arrays"))


@pytest.fixture(scope="module")
def mano(tmp_path_factory: pytest.TempPathFactory) -> ManoModels:
    folder = tmp_path_factory.mktemp("mano")
    write_mano(folder)
    return load_mano(folder)


@pytest.fixture(scope="module")
def one(sides: dict[str, Arrays], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of a tree with one sequence, of a left hand; copy it before a change."""
    root = tmp_path_factory.mktemp("one")
    write_dexycb(root, sides, [ONE])
    return root


def copy(source: Path, root: Path, *, labels: bool = False) -> None:
    ignore = None if labels else shutil.ignore_patterns("labels_*")
    shutil.copytree(source, root, dirs_exist_ok=True, ignore=ignore)


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def read_all(root: Path, mano: ManoModels | None) -> LabelStack:
    source = open_source(root, mano)
    return source.label_job(range(len(source.rows)))()


def refused(root: Path, mano: ManoModels | None, *words: str) -> None:
    with pytest.raises(SourceError) as error:
        read_all(root, mano)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    for word in ("dexycb: ", *words):
        assert word in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_frames: 4", "num_frames: four", ("num_frames is 'four'", "a positive integer")),
        ("num_frames: 4", "num_frames: 4.0", ("num_frames is 4.0",)),
        ("num_frames: 4", "num_frames: true", ("num_frames is True",)),
        ("num_frames: 4", "num_frames: 0", ("num_frames is 0",)),
        ("num_frames: 4", "num_frames: 4000000", ("num_frames is 4000000",)),
        ("num_frames: 4\n", "", ("no num_frames",)),
        ("- 21\n", "- 22\n", ("ycb_ids is [22, 1]", "1 to 21")),
        ("- 21\n", "- 0\n", ("ycb_ids is [0, 1]",)),
        ("- 21\n", "- 1\n", ("ycb_ids is [1, 1]", "distinct")),
        ("ycb_ids:\n", "other:\n", ("no ycb_ids",)),
        ("ycb_grasp_ind: 0", "ycb_grasp_ind: 2", ("ycb_grasp_ind is 2", "0 to 1")),
        ("ycb_grasp_ind: 0", "ycb_grasp_ind: -1", ("ycb_grasp_ind is -1",)),
        ("- left", "- both", ("mano_sides is ['both']", "['right'] or ['left']")),
        ("- left", "- left\n- right", ("mano_sides is ['left', 'right']",)),
        ("- left", "- [left]", ("mano_sides is a list of 1",)),
        ("- '836212060125'\n", "- '1'\n", ("serials is a list of 8", "official cameras")),
        ("- '836212060125'\n", "- '839512060362'\n", ("serials is a list of 8",)),
        ("'20200702_151821'", "../../../etc", ("extrinsics is '../../../etc'",)),
        ("'20200702_151821'", "'20200702_000000'", ("extrinsics_20200702_000000/extrinsics.yml",)),
        ("extrinsics:", "extrinsics: !!python/object/apply:os.system", ("os.system", "line 1")),
        ("extrinsics:", "- extrinsics:", ("not valid YAML",)),
    ],
)
def test_a_broken_meta_is_named(
    one: Path, mano: ManoModels, tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    copy(one, tmp_path)
    replace_text(tmp_path / ONE.folder / "meta.yml", old, new)
    place = "calibration" if "/extrinsics.yml" in words[0] else f"{ONE.name}/meta.yml"
    refused(tmp_path, mano, place, *words)


def test_all_problems_of_a_meta_come_at_once(one: Path, tmp_path: Path) -> None:
    copy(one, tmp_path)
    (tmp_path / ONE.folder / "meta.yml").write_text("num_frames: x\nycb_ids: [99]\n")
    words = ("num_frames is 'x'", "ycb_ids is [99]", "no serials", "no mano_sides", "no extrinsics")
    refused(tmp_path, None, *words)


def test_names_that_yaml_takes_for_numbers_stay_names(one: Path, tmp_path: Path) -> None:
    copy(one, tmp_path)
    meta = tmp_path / ONE.folder / "meta.yml"
    meta.write_text(meta.read_text().replace("'", ""))
    assert open_source(tmp_path, None).rows.image == open_source(one, None).rows.image


EXTRINSICS = "extrinsics_20200702_151821/extrinsics.yml"
MANO = "mano_20200514_142106_subject-01_right/mano.yml"
INTRINSICS = "intrinsics/932122060857_640x480.yml"


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (EXTRINSICS, "'932122060857'", "'1'", ("no extrinsics of 932122060857", "20200709_141931")),
        (
            EXTRINSICS,
            "  - 1.0\n",
            "",
            ("extrinsics of 840412060917 are (0.0, ", "12 numbers"),
        ),
        (EXTRINSICS, "  - 1.0\n", "  - 2.0\n", ("extrinsics of 840412060917 are no [R | t]",)),
        (EXTRINSICS, "  - 1.0\n", "  - -1.0\n", ("extrinsics of 840412060917 are no [R | t]",)),
        (EXTRINSICS, "  - 1.0\n", "  - .nan\n", ("extrinsics of 840412060917 are",)),
        (EXTRINSICS, "extrinsics:", "other:", ("no extrinsics",)),
        (EXTRINSICS, "python/tuple", "python/name:os.system", ("python/name:os.system",)),
        (MANO, "betas:\n", "betas:\n- 0.5\n", ("betas is a list of 11", "10 numbers")),
        (MANO, "betas:", "shape:", ("betas is missing",)),
        (INTRINSICS, "  fx", "  f", ("no color.fx",)),
        (INTRINSICS, "  fx: ", "  fx: -", ("no focal lengths",)),
        (INTRINSICS, "color:", "color:\n  width: 1280", ("color.width is 1280, expected 640",)),
        (INTRINSICS, "color:", "colour:", ("no color",)),
    ],
)
def test_broken_calibration_is_named(
    one: Path,
    mano: ManoModels,
    tmp_path: Path,
    file: str,
    old: str,
    new: str,
    words: tuple[str, ...],
) -> None:
    copy(one, tmp_path)
    path = tmp_path / "calibration" / file
    replace_text(path, old, new)
    refused(tmp_path, mano, str(path), *words)


def test_nine_betas_are_refused(one: Path, mano: ManoModels, tmp_path: Path) -> None:
    copy(one, tmp_path)
    path = tmp_path / "calibration" / MANO
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    refused(tmp_path, mano, str(path), "betas is a list of 9, expected 10 numbers")


LEVELS = "abcdefghij"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in itertools.pairwise(LEVELS)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, ("more than 10000 values", "aliases")),
        ("a: &a [1, *a]", ("an alias to nothing before it",)),
        ("[" * 60_000, ("deeper than 16 levels",)),
        ("- " * 60_000, ("deeper than 16 levels",)),
        ("x: 1\n" * 300_000, ("larger than 1048576 bytes",)),
        ("x: " + "9" * 5000, ("not valid YAML",)),
        ("x: !!binary aGVsbG8=", ("binary",)),
        ("x: !!bool 17", ("not valid YAML",)),
        ("x: !mine 3", ("'!mine'", "line 1")),
        ("x: [1, 2", ("not valid YAML", "cut off")),
        ("x: 1\n---\ny: 2", ("not valid YAML",)),
        ("? [1]\n: 2", ("not valid YAML",)),
        ("x: \x00", ("not valid YAML",)),
        ("- 1", ("it is [1], expected a mapping",)),
        ("", ("it is None, expected a mapping",)),
    ],
    ids=range(15),
)
def test_hostile_yaml_is_refused(
    one: Path, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    copy(one, tmp_path)
    (tmp_path / ONE.folder / "meta.yml").write_text(text)
    refused(tmp_path, None, f"{ONE.name}/meta.yml", *words)


def good_arrays() -> dict[str, np.ndarray]:
    num = len(ONE.ycb_ids)
    return {
        "seg": np.zeros((480, 640), np.uint8),
        "pose_y": np.zeros((num, 3, 4), np.float32),
        "pose_m": np.zeros((1, 51), np.float32),
        "joint_3d": np.zeros((1, 21, 3), np.float32),
    }


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pose_m", None, ("no pose_m",)),
        ("seg", None, ("no seg",)),
        ("pose_m", np.zeros((1, 48), np.float32), ("pose_m: it has shape (1, 48)", "(1, 51)")),
        ("pose_y", np.zeros((3, 3, 4), np.float32), ("(3, 3, 4), expected (2, 3, 4)",)),
        ("joint_3d", np.zeros((1, 21, 2), np.float32), ("joint_3d: it has shape (1, 21, 2)",)),
        ("seg", np.zeros((720, 1280), np.uint8), ("(720, 1280), expected (480, 640)",)),
        ("pose_m", np.zeros((1, 51), np.int64), ("pose_m: it holds int64, expected f4 or f8",)),
        ("pose_m", np.zeros((9000, 51)), ("pose_m: it has shape (9000, 51)", "(1, 51)")),
        ("pose_m", np.array([[None] * 51]), ("pose_m: it holds object, expected f4 or f8",)),
    ],
    ids=range(9),
)
def test_a_broken_label_file_is_named(
    one: Path,
    mano: ManoModels,
    tmp_path: Path,
    key: str,
    value: np.ndarray | None,
    words: tuple[str, ...],
) -> None:
    copy(one, tmp_path, labels=True)
    arrays = good_arrays()
    if value is None:
        del arrays[key]
    else:
        arrays[key] = value
    path = tmp_path / ONE.folder / SERIALS[4] / "labels_000002.npz"
    np.savez_compressed(path, allow_pickle=value is not None and value.dtype == object, **arrays)
    refused(tmp_path, mano, str(path), "unpack", *words)


def test_a_label_file_that_is_damaged_or_gone_is_named(
    one: Path, mano: ManoModels, tmp_path: Path
) -> None:
    copy(one, tmp_path, labels=True)
    path = tmp_path / ONE.folder / SERIALS[7] / "labels_000003.npz"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    refused(tmp_path, mano, str(path), "cut off")
    path.write_bytes(b"")
    refused(tmp_path, mano, str(path), "not a zip file")
    at = data.rindex(b"joint_3d.npy", 0, data.index(b"PK\x01\x02")) + 100
    path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    refused(tmp_path, mano, str(path), "joint_3d: it is damaged")
    path.unlink()
    refused(tmp_path, mano, str(path), "cannot read", "No such file")
    path.mkdir()
    refused(tmp_path, mano, str(path), "cannot read", "Is a directory")


def test_a_broken_picture_is_named(sides: dict[str, Arrays], tmp_path: Path) -> None:
    write_dexycb(tmp_path, sides, [replace(ONE, num_frames=1)], pictures=True)
    source = open_source(tmp_path, None)
    assert source.picture is not None
    image = source.rows.image[0]
    depth = tmp_path / ONE.folder / SERIALS[0] / "aligned_depth_to_color_000000.png"
    label = depth.with_name("labels_000000.npz")
    good = depth.read_bytes()
    for data, words in (
        (good[:200], "is cut off"),
        (good[:200] + bytes(100) + good[300:], "is damaged"),
        (b"", "is empty"),
        (b"GIF89a", "is not a JPEG"),
        (png_of_claimed_size(65_000, 65_000), "claims 65000 x 65000 pixels"),
        (cv2.imencode(".png", np.zeros((480, 640), np.uint8))[1].tobytes(), "it is uint8"),
        (cv2.imencode(".png", np.zeros((8, 9), np.uint16))[1].tobytes(), "shape (8, 9)"),
    ):
        depth.write_bytes(data)
        with pytest.raises(SourceError) as error:
            source.picture(tmp_path, image, "depth_mm")
        assert str(depth) in str(error.value)
        assert words in str(error.value)
    depth.unlink()
    with pytest.raises(SourceError, match=r"000000.png cannot be read \(No such file"):
        source.picture(tmp_path, image, "depth_mm")
    os.mkfifo(depth)
    with pytest.raises(SourceError, match=r"000000.png is no regular file"):
        source.picture(tmp_path, image, "depth_mm")
    depth.unlink()
    depth.write_bytes(good)
    source.picture(tmp_path, image, "depth_mm")
    arrays = good_arrays()
    arrays["seg"][3, 4] = 2  # an object, but none of this sequence
    np.savez(label, allow_pickle=False, **arrays)
    with pytest.raises(
        SourceError, match=r"000000.npz names \[2\], expected 0, 255 and .*\[21, 1\]"
    ):
        source.picture(tmp_path, image, "segmentation")


def test_what_is_not_there_is_named(one: Path, mano: ManoModels, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", None, "does not exist")
    refused(tmp_path, None, "has no calibration/")
    (tmp_path / "calibration").mkdir()
    refused(tmp_path, None, "none of the subjects 20200709-subject-01 to 20201022-subject-10")
    (tmp_path / SUBJECTS[4]).mkdir()
    refused(tmp_path, None, f"{SUBJECTS[4]} holds no sequence folder", "remove its folder")
    (tmp_path / SUBJECTS[4]).rmdir()
    (tmp_path / "calibration").rmdir()
    copy(one, tmp_path)
    mesh = tmp_path / "models" / "061_foam_brick" / "textured_simple.obj"
    mesh.unlink()
    refused(tmp_path, None, "models/061_foam_brick/textured_simple.obj", "models.tar.gz")
    mesh.write_text("v 0 0 0\n")
    (tmp_path / "calibration" / INTRINSICS).unlink()
    (tmp_path / "calibration" / MANO).unlink()
    refused(tmp_path, mano, INTRINSICS, MANO)
    (tmp_path / ONE.folder / "meta.yml").unlink()
    refused(tmp_path, None, f"{ONE.name}/meta.yml", "No such file")


@pytest.mark.parametrize("kind", ["meta", "label"])
def test_a_pipe_is_not_opened(one: Path, tmp_path: Path, kind: str) -> None:
    copy(one, tmp_path, labels=True)
    label = f"{ONE.folder}/{SERIALS[0]}/labels_000000.npz"
    path = tmp_path / (f"{ONE.folder}/meta.yml" if kind == "meta" else label)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SourceError, match=rf"{path.name} is a FIFO, socket or device"):
        read_all(tmp_path, None)


def test_a_folder_that_cannot_be_listed_is_named(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(one, tmp_path)

    listed = os.scandir

    def deny(path: Path) -> object:
        if path.name == SUBJECTS[0]:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr("os.scandir", deny)
    refused(tmp_path, None, f"cannot list {tmp_path / SUBJECTS[0]}", "Permission denied")
