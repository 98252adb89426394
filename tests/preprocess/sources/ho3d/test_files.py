"""The HO-3D reader at bad trees, and its meshes and pictures."""

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from preprocess.records import SourceError
from preprocess.sources.ho3d.pictures import read_picture
from preprocess.sources.ho3d.source import open_source
from tests.pipeline.pickles.pickle_words import python2_dumps
from tests.preprocess.datasets import png_of_claimed_size, write_mano
from tests.preprocess.sources.ho3d.tree import SIZE_HW, Ho3dTruth, rewrite, write_ho3d

YCB = {"021_bleach_cleanser": 11, "003_cracker_box": 1, "019_pitcher_base": 10}
"""DexYCB's ids less one."""
KINDS = ("depth_mm", "segmentation")


@pytest.fixture(scope="module")
def mano_arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return write_mano(tmp_path_factory.mktemp("mano"))["right"]


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, mano_arrays: dict[str, np.ndarray]
) -> Ho3dTruth:
    return write_ho3d(tmp_path_factory.mktemp("written") / "HO3D_v3", mano_arrays)


@pytest.fixture
def tree(tmp_path: Path, written: Ho3dTruth) -> Ho3dTruth:
    """A copy to change."""
    return replace(written, root=shutil.copytree(written.root, tmp_path / "HO3D_v3"))


# --- what is refused ------------------------------------------------------------------------------


def read_all(tree: Ho3dTruth) -> None:
    source = open_source(tree.root, None)
    source.label_job(range(len(source.rows)))()


def refusal(run: Callable[[], Any]) -> str:
    with pytest.raises(SourceError) as caught:
        run()
    sentence = str(caught.value)
    assert sentence.startswith("ho3d: ")
    assert "\n" not in sentence
    return sentence


class _Calls:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("exit 3",)


def bomb() -> bytes:
    """Lists of lists of lists: a few hundred bytes that unfold to 2^30 values."""
    value: list[Any] = [0, 0]
    for _ in range(30):
        value = [value, value]
    return pickle.dumps({"handJoints3D": value, "objRot": None}, protocol=2)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(pickle.dumps(_Calls(), protocol=2), "refused at byte", id="runs a command"),
        pytest.param(pickle.dumps(_Calls(), protocol=0), "refused at byte", id="in protocol 0"),
        pytest.param(bomb(), "unfold", id="bomb"),
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"\x93NUMPY\x01\x00", "a .npy file", id="npy"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", id="pointer"),
        pytest.param(b"\x00" * (5 << 20), "larger than", id="large"),
        pytest.param(python2_dumps([1, 2]), "no dict", id="list"),
        pytest.param(python2_dumps({"pose": None}), "keys ['pose']", id="another dict"),
        pytest.param(
            python2_dumps({"rightHandJoints3D": None, "objRot": None}), "not H2O-3D", id="H2O-3D"
        ),
    ],
)
def test_hostile_and_broken_pickles_are_refused(
    tree: Ho3dTruth, content: bytes, found: str
) -> None:
    (tree.root / "train/MC2/meta/0010.pkl").write_bytes(content)
    source = open_source(tree.root, None)
    source.label_job([0])()  # other rows are as they were
    sentence = refusal(lambda: read_all(tree))
    assert "train/MC2/meta/0010.pkl" in sentence
    assert found in sentence


def test_a_pickle_cut_off_anywhere_is_refused(tree: Ho3dTruth) -> None:
    path = tree.root / "train/MC2/meta/0010.pkl"
    data = path.read_bytes()
    source = open_source(tree.root, None)
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        assert str(path) in refusal(source.label_job([tree.at("MC2/0010")]))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"camMat": np.eye(4)}, "camMat is of shape (4, 4), expected numbers of shape (3, 3)"),
        ({"handJoints3D": np.zeros((16, 3))}, "handJoints3D is of shape (16, 3)"),
        ({"handPose": np.zeros(45)}, "handPose is of shape (45,)"),
        ({"handBeta": np.zeros((10, 10))}, "handBeta is of shape (10, 10)"),
        ({"objRot": np.eye(3)}, "objRot is of shape (3, 3)"),
        ({"objTrans": "far"}, "objTrans is str of <U3"),
        ({"handTrans": [1, [2, 3]]}, "handTrans is ragged"),
        ({"handBoundingBox": [1, 2, 3]}, "handBoundingBox is of shape (3,)"),
        ({"objName": "teapot"}, "objName is 'teapot'"),
        ({"objName": np.arange(3)}, "objName is array([0, 1, 2])"),
    ],
)
def test_fields_of_another_form_are_named(
    tree: Ho3dTruth, changes: dict[str, Any], found: str
) -> None:
    rewrite(tree, "MC2/0010", **changes)
    sentence = refusal(lambda: read_all(tree))
    assert "train/MC2/meta/0010.pkl" in sentence
    assert found in sentence


def test_all_problems_of_a_file_are_in_one_sentence(tree: Ho3dTruth) -> None:
    rewrite(tree, "MC2/0010", camMat=np.eye(2), objName="teapot")
    sentence = refusal(lambda: read_all(tree))
    assert "camMat" in sentence
    assert "objName" in sentence


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ABF10/0000\nABF10 0001\n../../x/1\n", "2 lines of * (first: line 2 is 'ABF10 0001')"),
        ("ABF10/0000\nABF10/zero\n", "line 2 is 'ABF10/zero'"),
        ("/etc/0\n", "line 1 is '/etc/0'"),
        (
            "ABF10/0000\nABF13/0000\nABF10/0000\n",
            "lists 1 frames more than once (first: ABF10/0000)",
        ),
        (b"\xff\xfe\x00", "cannot read"),
        ("\n \n", "lists no frames"),
    ],
)
def test_bad_lists_are_refused(tree: Ho3dTruth, text: str | bytes, found: str) -> None:
    path = tree.root / "train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    sentence = refusal(lambda: open_source(tree.root, None))
    assert str(path) in sentence
    for part in found.split(" * "):
        assert part in sentence


def test_blank_lines_and_other_line_ends_are_fine(tree: Ho3dTruth) -> None:
    before = open_source(tree.root, None)
    path = tree.root / "train.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n  \r\n")
    assert open_source(tree.root, None).rows.image == before.rows.image


@pytest.mark.parametrize("gone", ["train.txt", "evaluation.txt", "train", "evaluation"])
def test_missing_parts_are_named(tree: Ho3dTruth, gone: str) -> None:
    path = tree.root / gone
    path.unlink() if path.is_file() else shutil.rmtree(path)
    sentence = refusal(lambda: open_source(tree.root, None))
    assert f"{tree.root} has no {gone}" in sentence


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    assert f"{str(tmp_path / 'gone')!r} does not exist" in refusal(
        lambda: open_source(tmp_path / "gone", None)
    )


@pytest.mark.parametrize("where", ["train/ABF10/rgb/0000.png", "evaluation/AP12/rgb/9999.png"])
def test_two_versions_in_one_tree_are_refused(tree: Ho3dTruth, where: str) -> None:
    (tree.root / where).write_bytes(b"png")
    assert where in refusal(lambda: open_source(tree.root, None))


def test_what_is_passed_over_and_what_is_missing_is_named(tree: Ho3dTruth) -> None:
    assert "warnings" not in open_source(tree.root, None).notes
    folder = tree.root / "train/ABF10/rgb"
    for name in ("._0000.jpg", "._0000.png", ".DS_Store", "0000 copy.jpg", "9998.jpg", "9999.jpg"):
        (folder / name).touch()
    os.mkfifo(folder / "0007.png")
    (tree.root / "train/XYZ1").mkdir()
    (tree.root / "train/ABF10/notes").mkdir()
    shutil.rmtree(tree.root / "evaluation/AP12")
    source = open_source(tree.root, None)
    assert source.notes["version"] == "v3"
    names = [
        f"train/{n}" for n in ("ABF10/notes/", "ABF10/rgb/0000 copy.jpg", "ABF10/rgb/0007.png")
    ]
    assert source.notes["passed_over"] == {"count": 4, "names": [*names, "train/XYZ1/"]}
    assert source.notes["hidden_files"] == 3
    assert source.notes["images_without_annotation"] == {"train/ABF10": 2}
    first, last = source.notes["warnings"]
    assert first.endswith("sequences of evaluation.txt are not in evaluation/: AP12")
    assert "4 of " in last


@pytest.mark.parametrize(
    "file", ["evaluation_xyz.json", "calibration/ABF1/calibration/trans_0.txt"]
)
def test_a_pipe_is_not_opened(tree: Ho3dTruth, file: str) -> None:
    path = tree.root / file
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if file.endswith(".json"):  # optional, and a pipe is none
        assert open_source(tree.root, None).notes["evaluation_truth"] == "wrist alone"
    else:
        assert "is a FIFO, socket or device" in refusal(lambda: open_source(tree.root, None))
    path.unlink()


def test_a_pipe_among_the_meta_files_is_not_opened(tree: Ho3dTruth) -> None:
    path = tree.root / "train/ABF10/meta/0000.pkl"
    path.unlink()
    os.mkfifo(path)
    assert f"{path} is a FIFO, socket or device" in refusal(lambda: read_all(tree))


def test_the_version_without_images_is_that_of_the_name(tree: Ho3dTruth, tmp_path: Path) -> None:
    for folder in tree.root.glob("*/*/rgb"):
        shutil.rmtree(folder)
    assert open_source(tree.root, None).notes["version"] == "v3"
    other = tree.root.rename(tmp_path / "HO3D_v2")
    source = open_source(other, None)
    assert source.notes["version"] == "v2"
    assert source.notes["version_found_by"] == "name of the folder, there are no images"
    assert source.rows.image[0].endswith(".png")
    unnamed = other.rename(tmp_path / "data")
    assert "no listed sequence" in refusal(lambda: open_source(unnamed, None))


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("trans_1.txt", "1 0 0", "is not a camera pose (3 numbers)"),
        ("trans_1.txt", "2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1", "is not a camera pose"),
        ("trans_1.txt", "1 0 0 0 0 1 0 0 0 0 -1 0 0 0 0 1", "is not a camera pose"),
        ("trans_1.txt", "one", "cannot read"),
        ("trans_1.txt", None, "cannot read"),
        ("trans_1.txt", "", "no finite numbers"),
        ("cam_orders.txt", "0 nan", "no finite numbers"),
    ],
)
def test_bad_calibration_is_refused(
    tree: Ho3dTruth, file: str, text: str | None, found: str
) -> None:
    path = tree.root / "calibration/ABF1/calibration" / file
    path.unlink() if text is None else path.write_text(text)
    sentence = refusal(lambda: open_source(tree.root, None))
    assert str(path) in sentence
    assert found in sentence


# --- objects and pictures -------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [False, True])
def test_meshes_are_found_in_the_root_and_beside_it(tree: Ho3dTruth, *, beside: bool) -> None:
    models = (tree.root.parent if beside else tree.root) / "models"
    (models / "011_banana").mkdir(parents=True)
    (models / "011_banana/textured_simple.obj").write_text("")
    source = open_source(tree.root, None)
    assert len(source.objects) == 21
    found = {entry.name: entry.mesh for entry in source.objects if entry.mesh}
    assert [*found] == ["011_banana"]
    assert (tree.root / found["011_banana"]).samefile(models / "011_banana/textured_simple.obj")
    assert all(entry.metres_per_unit == 1.0 for entry in source.objects)
    missing = source.notes["objects_without_mesh"]
    assert len(missing) == 20
    assert "011_banana" not in missing
    for name, number in YCB.items():
        assert source.objects[number].name == name


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("download", [False, True])
def test_pictures_equal_the_truth(
    tmp_path: Path,
    mano_arrays: dict[str, np.ndarray],
    version: str,
    *,
    download: bool,
) -> None:
    truth = write_ho3d(tmp_path / "tree", mano_arrays, version=version)
    if download:  # unpacked beside the dataset instead of into it
        for folder in truth.root.glob("train/*/seg"):
            target = tmp_path / f"HO3D_{version}_segmentations_rendered/train" / folder.parent.name
            target.mkdir(parents=True)
            folder.rename(target / "seg")
    source = open_source(truth.root, None)
    assert source.picture is read_picture
    for i, frame in enumerate(truth.frames):
        depth, segmentation = (
            read_picture(truth.root, source.rows.image[i], kind) for kind in KINDS
        )
        assert depth is not None
        np.testing.assert_array_equal(depth, frame.depth_mm)
        if frame.segmentation is None:
            assert segmentation is None
        else:
            assert segmentation is not None
            np.testing.assert_array_equal(segmentation, frame.segmentation)


@pytest.mark.parametrize("kind", ["depth", "seg"])
def test_the_alpha_channel_of_a_picture_is_dropped(tree: Ho3dTruth, kind: str) -> None:
    path = tree.root / f"train/ABF10/{kind}/0000.png"
    opaque = cv2.imread(str(path))
    assert opaque is not None
    alpha = np.random.default_rng(0).integers(0, 256, (*opaque.shape[:2], 1), np.uint8)
    cv2.imwrite(str(path), np.concatenate([opaque, alpha], axis=-1))
    name, expected = {
        "depth": ("depth_mm", tree.frames[0].depth_mm),
        "seg": ("segmentation", tree.frames[0].segmentation),
    }[kind]
    np.testing.assert_array_equal(
        read_picture(tree.root, "train/ABF10/rgb/0000.jpg", name), expected
    )


def test_missing_pictures_are_none_and_segmentation_needs_no_depth(tree: Ho3dTruth) -> None:
    source = open_source(tree.root, None)
    image = source.rows.image[0]
    (tree.root / "train/ABF10/depth/0000.png").unlink()
    assert read_picture(tree.root, image, "depth_mm") is None
    segmentation = read_picture(tree.root, image, "segmentation")
    np.testing.assert_array_equal(segmentation, tree.frames[0].segmentation)
    (tree.root / image).unlink()
    assert [read_picture(tree.root, image, kind) for kind in KINDS] == [None, None]


@pytest.mark.parametrize(
    ("kind", "picture", "found"),
    [
        ("depth", b"", "is empty"),
        ("depth", b"no picture", "starts with 6e 6f"),
        pytest.param(
            "depth",
            png_of_claimed_size(65_000, 65_000),
            "claims 65000 x 65000 pixels",
            id="gigabytes",
        ),
        pytest.param("depth", png_of_claimed_size(5000, 48), "claims 5000 x 48 pixels", id="wide"),
        ("depth", np.zeros(SIZE_HW, np.uint16), "is uint16 of shape (48, 64)"),
        ("seg", np.full((12, 16, 3), (0, 0, 255), np.uint8), "(first: 255, 0, 0)"),
        ("seg", np.full((12, 16, 3), 255, np.uint8), "(first: 255, 255, 255)"),
        ("seg", np.full((7, 16, 3), (255, 0, 0), np.uint8), "has 16 x 7 pixels"),
    ],
)
def test_pictures_of_another_encoding_are_refused(
    tree: Ho3dTruth, kind: str, picture: bytes | np.ndarray, found: str
) -> None:
    source = open_source(tree.root, None)
    path = tree.root / f"train/ABF10/{kind}/0000.png"
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        cv2.imwrite(str(path), picture)
    name = "depth_mm" if kind == "depth" else "segmentation"
    sentence = refusal(lambda: read_picture(tree.root, source.rows.image[0], name))
    assert found in sentence
