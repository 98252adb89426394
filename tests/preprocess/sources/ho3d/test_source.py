"""The HO-3D reader against trees written from the official description."""

import json
import pickle
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.hand import LEFT, RIGHT, JointSet
from model.mano.files import ManoModels, load_mano, mano_forward
from pipeline.store.schema import FLAGS
from preprocess.labels.quality import derive
from preprocess.records import DatasetSource, LabelStack, SourceError
from preprocess.sources.ho3d.files import recording_of
from preprocess.sources.ho3d.meta import Meta, read_meta
from preprocess.sources.ho3d.source import open_source
from preprocess.sources.registry import open_source as open_by_name
from tests.preprocess.datasets import write_mano
from tests.preprocess.sources.ho3d.tree import Ho3dTruth, rewrite, write_ho3d

YCB = {"021_bleach_cleanser": 11, "003_cracker_box": 1, "019_pitcher_base": 10}
"""DexYCB's ids less one."""
VERSIONS = pytest.mark.parametrize("version", ["v2", "v3"])


@pytest.fixture(scope="module")
def mano_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("mano")
    return folder, write_mano(folder)["right"]


@pytest.fixture(scope="module")
def mano(mano_files: tuple[Path, dict[str, np.ndarray]]) -> ManoModels:
    return load_mano(mano_files[0])


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, mano_files: tuple[Path, dict[str, np.ndarray]]
) -> Ho3dTruth:
    return write_ho3d(tmp_path_factory.mktemp("written") / "HO3D_v3", mano_files[1])


@pytest.fixture
def tree(tmp_path: Path, written: Ho3dTruth) -> Ho3dTruth:
    """A copy to change."""
    return replace(written, root=shutil.copytree(written.root, tmp_path / "HO3D_v3"))


def labels_of(source: DatasetSource, rows: list[int] | None = None) -> LabelStack:
    """Make labels as a worker does: the job travels as bytes."""
    job = source.label_job(range(len(source.rows)) if rows is None else rows)
    stack: LabelStack = pickle.loads(pickle.dumps(job))()  # noqa: S301  # our own bytes
    return stack


# --- rows and splits ------------------------------------------------------------------------------


@VERSIONS
def test_rows_are_the_listed_frames_in_their_order(
    tmp_path: Path, mano_files: tuple[Path, dict[str, np.ndarray]], version: str
) -> None:
    truth = write_ho3d(tmp_path / "anywhere", mano_files[1], version=version)
    suffix = {"v2": ".png", "v3": ".jpg"}[version]
    # Frames without a line are not annotated.
    (truth.root / f"train/ABF10/rgb/0002{suffix}").write_bytes(b"unlisted")
    source = open_by_name("ho3d", truth.root, None)
    assert source.dataset == "ho3d"
    assert source.joint_set is JointSet.ho3d
    assert source.notes["version"] == version
    assert source.notes["version_found_by"] == f"images are {suffix}"
    assert len(source.rows) == len(truth.frames) == 12
    for i, frame in enumerate(truth.frames):
        assert source.rows.image[i] == f"{frame.folder}/rgb/{frame.stem}{suffix}"
        assert (truth.root / source.rows.image[i]).read_bytes() == frame.image
    assert source.rows.sequence == [frame.folder for frame in truth.frames]
    assert source.rows.camera == [*"000333", "single", *"00", *"11", "2"]
    assert source.rows.frame_idx.tolist() == [0, 1, 3, 0, 1, 3, 10, 0, 7, 7, 0, 5]
    assert {name: rows.tolist() for name, rows in source.splits.items()} == {
        "train": list(range(9)),
        "train_holdin": [0, 1, 2, 3, 4, 5, 7, 8],
        "train_holdout": [6],
        "evaluation": [9, 10, 11],
    }
    assert json.loads(json.dumps(source.notes)) == source.notes


OF_SEVERAL = {
    "ABF1",
    "BB1",
    "GPMF1",
    "GSF1",
    "MDF1",
    "SB1",
    "ShSu1",
    "SiBF1",
    "SMu4",
    "MPM1",
    "AP1",
}
TRAIN = {
    "ABF1": "01234", "BB1": "01234", "GPMF1": "01234", "GSF1": "01234", "MC": "12456",
    "MDF1": "01234", "ND": "2",  # codespell:ignore nd
    "SB1": "024", "ShSu1": "0234", "SiBF1": "01234", "SiS": "1",
    "SM": "2345", "SMu": "1", "SMu4": "012", "SS": "123",
}  # fmt: skip
EVALUATION = {"AP1": "01234", "MPM1": "01234", "SB1": "13", "SM": "1"}
TRAIN_SEQUENCES, EVALUATION_SEQUENCES = (
    [prefix + digit for prefix, digits in part.items() for digit in digits]
    for part in (TRAIN, EVALUATION)
)
COUNTS = {"v2": (66_034, 11_524), "v3": (83_325, 20_137)}


def write_lists(root: Path, version: str) -> None:
    """Write lists of the official lengths over the official sequences, shuffled; no images."""
    rng = np.random.default_rng(5)
    for part, sequences, num in zip(
        ("train", "evaluation"),
        (TRAIN_SEQUENCES, EVALUATION_SEQUENCES),
        COUNTS[version],
        strict=True,
    ):
        (root / part).mkdir(parents=True)
        frames = [divmod(i, len(sequences)) for i in range(num)]
        lines = [f"{sequences[k]}/{i:04d}\n" for i, k in frames]
        rng.shuffle(lines)
        (root / f"{part}.txt").write_text("".join(lines))


@VERSIONS
def test_official_lists_give_the_official_counts(tmp_path: Path, version: str) -> None:
    assert len(TRAIN_SEQUENCES) == 55
    assert len(EVALUATION_SEQUENCES) == 13
    write_lists(tmp_path, version)
    start = time.process_time()
    source = open_source(tmp_path, None)
    assert time.process_time() - start < 5.0
    assert source.notes["version"] == version
    num_train, num_eval = COUNTS[version]
    assert source.official_counts == {"train": num_train, "evaluation": num_eval}
    assert source.splits["train"].tolist() == list(range(num_train))
    assert source.splits["evaluation"].tolist() == list(range(num_train, num_train + num_eval))
    lines = (tmp_path / "train.txt").read_text().split()
    assert [
        f"{sequence.removeprefix('train/')}/{frame:04d}"
        for sequence, frame in zip(
            source.rows.sequence[:num_train], source.rows.frame_idx[:num_train], strict=True
        )
    ] == lines


@VERSIONS
def test_the_hold_out_is_whole_recordings_and_at_most_a_tenth(tmp_path: Path, version: str) -> None:
    write_lists(tmp_path, version)
    source = open_source(tmp_path, None)

    def recordings(split: str) -> set[str]:
        sequences = {source.rows.sequence[i].split("/")[1] for i in source.splits[split]}
        return {s[:-1] if s[:-1] in OF_SEVERAL else s for s in sequences}

    held_in, held_out = recordings("train_holdin"), recordings("train_holdout")
    assert held_out
    assert not held_in & held_out
    both = np.concatenate([source.splits["train_holdin"], source.splits["train_holdout"]])
    assert sorted(both.tolist()) == source.splits["train"].tolist()
    share = len(source.splits["train_holdout"]) / len(source.splits["train"])
    assert 0.05 < share <= 0.1


@pytest.mark.parametrize("sequence", [*TRAIN_SEQUENCES, *EVALUATION_SEQUENCES])
def test_recordings_of_several_cameras_are_those_of_the_toolkit(sequence: str) -> None:
    expected = (
        (sequence[:-1], sequence[-1]) if sequence[:-1] in OF_SEVERAL else (sequence, "single")
    )
    assert recording_of(sequence) == expected


def test_one_recording_alone_is_not_held_out(tree: Ho3dTruth) -> None:
    (tree.root / "train.txt").write_text("ABF10/0000\nABF13/0000\n")
    splits = open_source(tree.root, None).splits
    assert splits["train_holdout"].tolist() == []
    assert splits["train_holdin"].tolist() == [0, 1]


# --- labels ---------------------------------------------------------------------------------------


@VERSIONS
def test_labels_equal_the_truth(
    tmp_path: Path,
    mano_files: tuple[Path, dict[str, np.ndarray]],
    mano: ManoModels,
    version: str,
) -> None:
    truth = write_ho3d(tmp_path / "tree", mano_files[1], version=version)
    labels = labels_of(open_source(truth.root, mano))
    vertices, _ = mano_forward(
        mano.right,
        labels.theta[: truth.num_train, RIGHT],
        labels.beta[: truth.num_train, RIGHT],
        labels.transl[: truth.num_train, RIGHT],
    )
    for i, frame in enumerate(truth.frames):
        np.testing.assert_array_equal(labels.K[i], frame.K)
        given = slice(0, 21 if i < truth.num_train else 1)
        np.testing.assert_allclose(
            labels.joints_3d[i, RIGHT, given], frame.joints[given], atol=1e-9
        )
        assert labels.joint_valid[i, RIGHT, given].all()
        assert labels.joint_valid[i].sum() == given.stop
        assert (labels.joints_3d[i, RIGHT, given, 2] > 0).all()
        assert labels.object_id[i].tolist() == [YCB[frame.object_name], *[-1] * 9]
        assert labels.grasped_object[i] == 0
        np.testing.assert_allclose(labels.object_pose[i, 0], frame.object_pose, atol=1e-9)
        assert np.isnan(labels.object_pose[i, 1:]).all()
        if i < truth.num_train:
            np.testing.assert_allclose(vertices[i], frame.vertices, atol=1e-6)
            np.testing.assert_array_equal(labels.beta_raw[i, RIGHT], frame.meta["handBeta"])
            np.testing.assert_array_equal(labels.beta[i, RIGHT], frame.meta["handBeta"])
            np.testing.assert_array_equal(labels.theta[i, RIGHT, 3:], frame.meta["handPose"][3:])
            assert labels.vertices_check_m[i] < 1e-6
            assert np.isnan(labels.bbox_xyxy[i]).all()
        else:
            assert np.isnan(labels.theta[i]).all()
            assert np.isnan(labels.vertices_check_m[i])
            np.testing.assert_array_equal(labels.bbox_xyxy[i, RIGHT], [10, 12, 40, 44])
    for name in ("joints_3d", "theta", "beta", "beta_raw", "transl", "bbox_xyxy"):
        assert np.isnan(getattr(labels, name)[:, LEFT]).all()


def test_labels_without_mano_are_the_same_but_for_mano(tree: Ho3dTruth, mano: ManoModels) -> None:
    plain, full = (labels_of(open_source(tree.root, models)) for models in (None, mano))
    of_mano = {"theta", "beta", "beta_raw", "transl", "root_rest", "refit_error_m"}
    for field in fields(LabelStack):
        ours, theirs = getattr(plain, field.name), getattr(full, field.name)
        if field.name in of_mano or field.name == "vertices_check_m":
            assert np.isnan(ours).all()
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_another_hand_model_shows_in_the_fingertips(tmp_path: Path, tree: Ho3dTruth) -> None:
    write_mano(tmp_path / "other", seed=1)
    labels = labels_of(open_source(tree.root, load_mano(tmp_path / "other")))
    assert (labels.vertices_check_m[: tree.num_train] > 1e-2).all()


def test_jobs_of_parts_equal_the_job_of_all(tree: Ho3dTruth, mano: ManoModels) -> None:
    source = open_source(tree.root, mano)
    whole = labels_of(source)
    for rows in ([11, 2], [5], [8, 9]):
        part = labels_of(source, rows)
        for field in fields(LabelStack):
            np.testing.assert_allclose(
                getattr(part, field.name), getattr(whole, field.name)[rows], rtol=0, atol=1e-12
            )


def test_meta_is_read_in_the_job_alone(tree: Ho3dTruth, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: Path) -> Meta | None:
        read.append(path.name)
        return read_meta(path)

    monkeypatch.setattr("preprocess.sources.ho3d.source.read_meta", counted)
    source = open_source(tree.root, None)
    job = source.label_job([tree.at("MC2/0010")])
    assert not read
    assert len(pickle.dumps(job)) < 4000
    job()
    assert read == ["0010.pkl"]


def test_world_poses_come_from_the_place_in_the_list_of_cameras(tree: Ho3dTruth) -> None:
    source = open_source(tree.root, None)
    labels = labels_of(source)
    calibrated = 0
    for i, frame in enumerate(tree.frames):
        if frame.T_world_from_cam is None:
            assert np.isnan(labels.T_world_from_cam[i]).all()
            continue
        calibrated += 1
        np.testing.assert_allclose(labels.T_world_from_cam[i], frame.T_world_from_cam, atol=1e-11)
    assert calibrated == 11
    assert source.notes["sequences_with_camera_pose"] == 5


@pytest.mark.parametrize("calibration", [True, False])
def test_objects_start_where_the_sequence_first_has_them(
    tmp_path: Path, mano_files: tuple[Path, dict[str, np.ndarray]], *, calibration: bool
) -> None:
    truth = write_ho3d(tmp_path / "tree", mano_files[1], calibration=calibration)
    rewrite(truth, "ABF13/0000", objRot=None)
    (truth.root / "evaluation/SB11/meta/0000.pkl").unlink()
    source = open_source(truth.root, None)
    expected = {"ABF10": "0000", "ABF13": "0001", "MC2": "0010", "SB10": "0000", "SB11": "0007"}
    expected["AP12"] = "0005"
    for rows in (range(12), [5, 9]):  # the first frame need not be among the rows of a job
        labels = labels_of(source, list(rows))
        for k, i in enumerate(rows):
            frame = truth.frames[i]
            if frame.folder == "evaluation/SB11" and frame.stem == "0000":
                assert np.isnan(labels.object_start[k]).all()
                continue
            sequence = frame.folder.split("/")[1]
            first = truth.frames[truth.at(f"{sequence}/{expected[sequence]}")]
            point = np.append(first.object_pose[:, 3], 1.0)
            if frame.T_world_from_cam is not None:
                point = frame.T_world_from_cam @ point
            np.testing.assert_allclose(labels.object_start[k, 0], point[:3], atol=1e-9)
            assert np.isnan(labels.object_start[k, 1:]).all()


@pytest.mark.parametrize("beside", [False, True])
def test_published_truth_completes_evaluation(
    tmp_path: Path, mano_files: tuple[Path, dict[str, np.ndarray]], *, beside: bool
) -> None:
    truth = write_ho3d(tmp_path / "tree", mano_files[1], truth=True)
    if beside:
        shutil.move(truth.root / "evaluation_xyz.json", tmp_path / "evaluation_xyz.json")
        (truth.root / "evaluation_verts.json").unlink()  # not needed for labels
    source = open_source(truth.root, None)
    where = "../evaluation_xyz.json" if beside else "evaluation_xyz.json"
    assert source.notes["evaluation_truth"] == where
    labels = labels_of(source)
    for i in source.splits["evaluation"]:
        assert labels.joint_valid[i, RIGHT].all()
        np.testing.assert_allclose(labels.joints_3d[i, RIGHT], truth.frames[i].joints, atol=1e-9)


def test_truth_of_other_frames_is_refused(
    tmp_path: Path, mano_files: tuple[Path, dict[str, np.ndarray]]
) -> None:
    truth = write_ho3d(tmp_path / "tree", mano_files[1], truth=True)
    path = truth.root / "evaluation_xyz.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(rows[1:]))
    with pytest.raises(SourceError, match=r"has 2 rows but .*evaluation\.txt lists 3 frames"):
        open_source(truth.root, None)
    path.write_text(json.dumps(rows[::-1]))
    source = open_source(truth.root, None)
    with pytest.raises(SourceError, match=r"puts the wrist of evaluation/\w+/\d+ \d+ mm from"):
        labels_of(source)


# --- what may be missing --------------------------------------------------------------------------


def flags(source: DatasetSource) -> np.ndarray:
    labels = labels_of(source)
    return derive(labels, np.tile([[0, 0]], (len(source.rows), 1))).quality


@pytest.mark.parametrize("missing", [None, "None"], ids=["nothing", "text"])
def test_a_frame_of_none_keeps_its_row_without_labels(
    tree: Ho3dTruth, mano: ManoModels, missing: str | None
) -> None:
    frame = tree.frames[tree.at("ABF10/0001")]
    rewrite(tree, "ABF10/0001", **dict.fromkeys(frame.meta, missing))
    source = open_source(tree.root, mano)
    i = tree.at("ABF10/0001")
    labels = labels_of(source)
    assert not labels.joint_valid[i].any()
    assert np.isnan(labels.K[i]).all()
    assert np.isnan(labels.theta[i]).all()
    assert labels.object_id[i, 0] == labels.grasped_object[i] == -1
    quality = flags(source)
    assert quality[i] & FLAGS["no_label"]
    assert not (np.delete(quality, i) & FLAGS["no_label"]).any()


@pytest.mark.parametrize("what", ["file", "meta folder", "sequence"])
def test_missing_meta_keeps_the_rows_without_labels(tree: Ho3dTruth, what: str) -> None:
    gone = {
        "file": ["MC2/0010"],
        "meta folder": ["ABF10/0000", "ABF10/0001", "ABF10/0003"],
        "sequence": ["SB11/0007", "SB11/0000"],
    }[what]
    if what == "file":
        (tree.root / "train/MC2/meta/0010.pkl").unlink()
    elif what == "meta folder":
        shutil.rmtree(tree.root / "train/ABF10/meta")
    else:
        shutil.rmtree(tree.root / "evaluation/SB11")
    source = open_source(tree.root, None)
    assert len(source.rows) == 12
    flagged = np.flatnonzero(flags(source) & FLAGS["no_label"])
    assert flagged.tolist() == sorted(map(tree.at, gone))


@pytest.mark.parametrize(
    ("changes", "has_joints", "has_hand", "has_object"),
    [
        ({"objRot": None}, True, True, False),
        ({"objTrans": None}, True, True, False),
        ({"handPose": None}, True, False, True),
        ({"handTrans": None}, True, False, True),
        ({"handBeta": None}, True, False, True),
        ({"handJoints3D": None}, False, True, True),
        ({"handBeta": np.full(10, np.nan)}, True, False, True),
        ({"objRot": np.full(3, np.inf)}, True, True, False),
    ],
)
def test_fields_may_be_none_one_by_one(
    tree: Ho3dTruth,
    mano: ManoModels,
    changes: dict[str, Any],
    *,
    has_joints: bool,
    has_hand: bool,
    has_object: bool,
) -> None:
    rewrite(tree, "MC2/0010", **changes)
    i = tree.at("MC2/0010")
    labels = labels_of(open_source(tree.root, mano))
    assert labels.joint_valid[i, RIGHT].all() == has_joints
    assert np.isfinite(labels.theta[i, RIGHT]).all() == has_hand
    assert np.isfinite(labels.object_pose[i, 0]).all() == has_object
    assert labels.object_id[i, 0] == 1


@pytest.mark.parametrize(
    "shape",
    [
        {"objRot": (3,), "objTrans": (3, 1)},
        {"objRot": (1, 3), "handPose": (48, 1), "handBeta": (1, 10), "handTrans": (1, 3)},
    ],
)
def test_vectors_may_be_columns_or_rows(
    tree: Ho3dTruth, mano: ManoModels, shape: dict[str, tuple[int, ...]]
) -> None:
    whole = labels_of(open_source(tree.root, mano))
    meta = tree.frames[tree.at("MC2/0010")].meta
    rewrite(tree, "MC2/0010", **{key: meta[key].reshape(s) for key, s in shape.items()})
    again = labels_of(open_source(tree.root, mano))
    for field in fields(LabelStack):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))


def test_the_wrist_of_evaluation_may_be_a_row_of_float32(tree: Ho3dTruth) -> None:
    frame = tree.frames[tree.at("AP12/0005")]
    rewrite(tree, "AP12/0005", handJoints3D=frame.meta["handJoints3D"][None].astype(np.float32))
    labels = labels_of(open_source(tree.root, None))
    i = tree.at("AP12/0005")
    np.testing.assert_allclose(labels.joints_3d[i, RIGHT, 0], frame.joints[0], atol=1e-6)
    assert labels.joint_valid[i].sum() == 1
