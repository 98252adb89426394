"""The FreiHAND reader against a folder written from the official description, and bad folders."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.hand import LEFT, RIGHT, JointSet
from model.mano.files import load_mano
from preprocess.records import SourceError
from preprocess.sources.annotations import read_number_rows
from preprocess.sources.freihand.source import open_source
from preprocess.sources.registry import open_source as open_by_name
from tests.preprocess.datasets import (
    FreihandTruth,
    decode,
    labels_at,
    write_freihand,
    write_mano,
)


@pytest.fixture(scope="module")
def mano_arrays(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("mano")
    return folder, write_mano(folder)["right"]


@pytest.fixture
def truth(tmp_path: Path) -> FreihandTruth:
    return write_freihand(tmp_path)


def test_rows_and_splits_follow_the_official_numbering(truth: FreihandTruth) -> None:
    source = open_source(truth.root, None)
    assert source.dataset == "freihand"
    assert source.joint_set is JointSet.freihand
    assert source.official_counts["train"] == 4 * 32_560
    assert len(source.rows) == len(truth.images) == 14
    for i, data in enumerate(truth.images):
        assert (truth.root / source.rows.image[i]).read_bytes() == data
    assert (
        source.rows.sequence
        == ["gs"] * 3 + ["hom"] * 3 + ["sample"] * 3 + ["auto"] * 3 + ["evaluation"] * 2
    )
    assert source.rows.frame_idx.tolist() == [0, 1, 2] * 4 + [0, 1]
    splits = {name: rows.tolist() for name, rows in source.splits.items()}
    assert splits == {
        "train": list(range(12)),
        "train_gs": [0, 1, 2],
        "train90": [0, 1, 3, 4, 6, 7, 9, 10],
        "val10": [2, 5, 8, 11],
        "evaluation": [12, 13],
    }


@pytest.mark.parametrize(("num_unique", "num_val"), [(1, 0), (2, 1), (19, 1), (20, 2), (29, 2)])
def test_the_hold_out_is_a_tenth_of_the_poses(
    tmp_path: Path, num_unique: int, num_val: int
) -> None:
    splits = open_source(write_freihand(tmp_path, num_unique=num_unique).root, None).splits
    train, val = (set((splits[name] % num_unique).tolist()) for name in ("train90", "val10"))
    assert not train & val
    assert train | val == set(range(num_unique))
    assert val == set(range(num_unique - num_val, num_unique))
    assert len(splits["val10"]) == 4 * num_val
    assert sorted([*splits["train90"], *splits["val10"]]) == splits["train"].tolist()


def test_labels_are_those_of_the_json(truth: FreihandTruth) -> None:
    source = open_source(truth.root, None)
    for official_idx in range(14):
        pose = official_idx % 3 if official_idx < 12 else 3 + official_idx - 12
        labels = labels_at(source, official_idx)
        np.testing.assert_array_equal(labels.K, truth.K[pose])
        np.testing.assert_array_equal(labels.joints_3d[RIGHT], truth.xyz[pose])
        assert labels.joint_valid[RIGHT].all()
        assert not labels.joint_valid[LEFT].any()
        assert np.isnan(labels.theta).all()
        assert np.isnan(labels.T_world_from_cam).all()
        assert np.isnan(labels.vertices_check_m)


def test_mano_decodes_to_the_official_vertices(
    tmp_path: Path, mano_arrays: tuple[Path, dict[str, np.ndarray]]
) -> None:
    folder, arrays = mano_arrays
    truth = write_freihand(tmp_path, mano=arrays)
    source = open_source(truth.root, load_mano(folder))
    for official_idx, pose in ((0, 0), (4, 1), (11, 2), (13, 4)):
        labels = labels_at(source, official_idx)
        np.testing.assert_allclose(labels.theta[RIGHT], truth.theta[pose], atol=1e-12)
        np.testing.assert_array_equal(labels.beta[RIGHT], truth.beta[pose])
        np.testing.assert_array_equal(labels.beta_raw[RIGHT], truth.beta[pose])
        # With the labels as stored (float32), decoded by smplx.
        theta, beta, transl = (
            getattr(labels, name)[RIGHT].astype(np.float32).astype(np.float64)
            for name in ("theta", "beta", "transl")
        )
        decoded = decode(arrays, theta, beta) + transl
        assert np.linalg.norm(decoded - truth.verts[pose], axis=1).max() < 1e-5
        assert labels.vertices_check_m < 1e-9
        # joint 0 = J0(beta) + transl, whatever the pose
        shaped = arrays["v_template"] + arrays["shapedirs"] @ truth.beta[pose]
        np.testing.assert_allclose(labels.root_rest[RIGHT], arrays["J_regressor"][0] @ shaped)
        assert np.isnan(labels.theta[LEFT]).all()


def test_another_hand_model_shows_in_the_check(
    tmp_path: Path, mano_arrays: tuple[Path, dict[str, np.ndarray]]
) -> None:
    _, arrays = mano_arrays
    truth = write_freihand(tmp_path, mano=arrays)
    write_mano(tmp_path / "other", seed=1)
    labels = labels_at(open_source(truth.root, load_mano(tmp_path / "other")), 0)
    assert labels.vertices_check_m > 0.01


def test_evaluation_truth_may_lie_in_the_root(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path, truth_folder="FreiHAND_pub_v2")
    labels = labels_at(open_source(truth.root, None), 13)
    np.testing.assert_array_equal(labels.joints_3d[RIGHT], truth.xyz[4])


def test_evaluation_without_truth_has_no_labels(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path, truth_folder="elsewhere")
    source = open_source(truth.root, None)
    labels = labels_at(source, 13)
    np.testing.assert_array_equal(labels.K, truth.K[4])
    assert not labels.joint_valid.any()
    assert np.isnan(labels.joints_3d).all()
    assert labels_at(source, 0).joint_valid.any()


# --- bad input ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """Change one file and expect these words."""

    id: str
    file: str
    change: Any
    words: tuple[str, ...]


def edit(text: str, change: Any) -> str:
    return str(change(text)) if callable(change) else json.dumps(change)


BREAKS = [
    Break(
        id="cut off",
        file="training_xyz.json",
        change=lambda text: text[: len(text) // 2],
        words=("training_xyz.json is not valid JSON", "line 1", "unpack"),
    ),
    Break(
        id="object",
        file="training_K.json",
        change={"a": 1},
        words=("training_K.json", "Expecting a list of rows"),
    ),
    Break(
        id="trailing text",
        file="training_K.json",
        change=lambda text: text + "]",
        words=("training_K.json is not valid JSON", "Extra data"),
    ),
    Break(
        id="shorter",
        file="training_xyz.json",
        change=lambda text: json.dumps(json.loads(text)[:2]),
        words=("training_K.json has 3", "training_xyz.json has 2", "one row per pose"),
    ),
    Break(
        id="wrong shape",
        file="training_xyz.json",
        change=lambda text: json.dumps([[[0.0, 0.0, 1.0]] * 20, *json.loads(text)[1:2], [[1.0]]]),
        words=("2 of 3 rows", "row 0 is of shape (20, 3)", "(21, 3)"),
    ),
    Break(
        id="ragged",
        file="training_K.json",
        change=[[[1, 0, 0], [0, 1], [0, 0, 1]]] * 3,
        words=("3 of 3 rows", "row 0 is not numbers of one shape"),
    ),
    Break(
        id="words",
        file="training_K.json",
        change=[[["a"] * 3] * 3] * 3,
        words=("3 of 3 rows", "not numbers"),
    ),
    Break(
        id="nan",
        file="evaluation_K.json",
        change=lambda text: text.replace("31.5", "NaN", 1),
        words=("1 of 2 rows of", "evaluation_K.json", "row 0 holds NaN"),
    ),
    Break(
        id="empty",
        file="training_*.json",
        change=[],
        words=("training_K.json lists no poses", "unpack"),
    ),
    Break(
        id="not text",
        file="evaluation_K.json",
        change=lambda _: "\udcff\udcfe",
        words=("evaluation_K.json is not JSON", "byte 0"),
    ),
]


@pytest.mark.parametrize("case", BREAKS, ids=[case.id for case in BREAKS])
def test_a_broken_file_is_named(truth: FreihandTruth, case: Break) -> None:
    for path in truth.root.glob(case.file):
        changed = edit(path.read_text(), case.change)
        path.write_bytes(changed.encode("utf-8", "surrogateescape"))
    with pytest.raises(SourceError) as error:
        open_source(truth.root, None)
    for word in ("freihand:", *case.words):
        assert word in str(error.value)


def test_every_missing_file_is_named(truth: FreihandTruth) -> None:
    for name in ("training_K.json", "training_xyz.json"):
        (truth.root / name).unlink()
    with pytest.raises(SourceError, match=r"has no training_K.json, training_xyz.json; expected"):
        open_source(truth.root, None)


def test_mano_files_are_needed_only_with_mano(
    truth: FreihandTruth, mano_arrays: tuple[Path, dict[str, np.ndarray]]
) -> None:
    (truth.root / "training_verts.json").unlink()
    open_source(truth.root, None)
    with pytest.raises(SourceError, match=r"has no training_verts.json"):
        open_source(truth.root, load_mano(mano_arrays[0]))


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"root='.*nowhere' does not exist"):
        open_source(tmp_path / "nowhere", None)
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=r"root='.*file' is not a folder"):
        open_source(tmp_path / "file", None)


def test_images_without_annotation_are_counted(truth: FreihandTruth) -> None:
    for number in (12, 13):
        (truth.root / "training" / "rgb" / f"{number:08d}.jpg").write_bytes(b"x")
    with pytest.raises(SourceError) as error:
        open_source(truth.root, None)
    for word in ("holds 14 images", "lists 12", "3 poses x 4 versions", "2 images would have no"):
        assert word in str(error.value)


def test_other_entries_are_no_images_and_are_named(truth: FreihandTruth) -> None:
    folder = truth.root / "training" / "rgb"
    for number in range(12):
        (folder / f"._{number:08d}.jpg").write_bytes(b"resource fork")
    (folder / ".DS_Store").touch()
    (folder / "00000001 (1).jpg").touch()
    (folder / "00000099.jpg").mkdir()
    os.mkfifo(folder / "00000098.jpg")
    source = open_source(truth.root, None)
    assert len(source.rows) == 14
    assert source.notes["hidden_files"] == 13
    names = [
        f"training/rgb/{name}" for name in ("00000001 (1).jpg", "00000098.jpg", "00000099.jpg/")
    ]
    assert source.notes["passed_over"] == {"count": 3, "names": names}
    assert source.notes["warnings"] == [
        f"3 of 17 files and folders were passed over for their names or kinds: {', '.join(names)}"
    ]


def test_a_pipe_in_the_place_of_an_annotation_is_not_opened(truth: FreihandTruth) -> None:
    (truth.root / "training_K.json").unlink()
    os.mkfifo(truth.root / "training_K.json")
    with pytest.raises(SourceError, match=r"has no training_K.json; expected"):
        open_source(truth.root, None)


def test_a_root_that_may_not_be_entered_is_named(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", deny)
    with pytest.raises(SourceError, match=r"cannot look into .* \(Permission denied\); make it"):
        open_source(truth.root, None)


def test_a_folder_that_cannot_be_listed_is_named(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", deny)
    with pytest.raises(
        SourceError, match=r"cannot list .*training/rgb \(Permission denied\); make"
    ):
        open_source(truth.root, None)


def test_unknown_datasets_get_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"did you mean 'freihand'"):
        open_by_name("freihnad", tmp_path, None)
    with pytest.raises(SourceError, match=r"choose from: freihand, interhand26m, dexycb, ho3d"):
        open_by_name("coco", tmp_path, None)


def test_numbers_survive_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1e-3, (5, 4))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(values.tolist(), indent=1))
    np.testing.assert_array_equal(read_number_rows("toy", path, (4,)), values)
    path.write_text(" [ ] ")
    assert read_number_rows("toy", path, (4,)).shape == (0, 4)
