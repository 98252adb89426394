"""The DexYCB reader against trees written without our code, and the official counts."""

import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.hand import LEFT, RIGHT, JointSet
from model.mano.files import ManoModels, load_mano
from preprocess.records import DatasetSource, LabelStack
from preprocess.sources.dexycb.source import open_source
from preprocess.sources.registry import open_source as open_by_name
from tests.preprocess.datasets import write_mano
from tests.preprocess.sources.dexycb.counts import official_counts
from tests.preprocess.sources.dexycb.tree import (
    SERIALS,
    SUBJECTS,
    Arrays,
    DexycbTruth,
    RowTruth,
    published,
    segmentation,
    skin,
    tiny_specs,
    write_dexycb,
    write_official_sequences,
)

AGREE_M = 1e-4
AGREE_PX = 0.05
SLOT = {"right": RIGHT, "left": LEFT}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiny:
    truth: DexycbTruth
    sides: dict[str, Arrays]
    mano: ManoModels
    source: DatasetSource
    labels: LabelStack
    """Of all rows in official order."""

    def rows(self, serials: Sequence[str] = SERIALS) -> Iterator[tuple[int, int, RowTruth]]:
        """Yield index, slot and truth of every row of some cameras."""
        for i, row in enumerate(self.truth.rows):
            if row.serial in serials:
                yield i, SLOT[row.spec.side], row


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("dexycb")
    sides = write_mano(folder / "mano")
    truth = write_dexycb(folder / "data", sides)
    mano = load_mano(folder / "mano")
    source = open_by_name("dexycb", folder / "data", mano)
    labels = source.label_job(range(len(source.rows)))()
    return Tiny(truth=truth, sides=sides, mano=mano, source=source, labels=labels)


def copy(source: Path, root: Path, *, labels: bool = False) -> None:
    ignore = None if labels else shutil.ignore_patterns("labels_*")
    shutil.copytree(source, root, dirs_exist_ok=True, ignore=ignore)


def has_mano(row: RowTruth) -> bool:
    return row.frame not in (*row.spec.no_hand, *row.spec.no_pose)


def has_joints(row: RowTruth) -> bool:
    return row.frame not in (*row.spec.no_hand, *row.spec.no_joints)


def decode(arrays: Arrays, labels: LabelStack, i: int, slot: int, beta: np.ndarray) -> np.ndarray:
    vertices, _ = skin(arrays, labels.theta[i, slot], beta)
    return np.asarray(vertices + labels.transl[i, slot])


# --- labels ---------------------------------------------------------------------------------------


def test_rows_come_by_sequence_camera_frame(tiny: Tiny) -> None:
    rows = tiny.source.rows
    assert rows.image == [row.image for row in tiny.truth.rows]
    assert rows.sequence == [row.spec.folder for row in tiny.truth.rows]
    assert rows.camera == [row.serial for row in tiny.truth.rows]
    assert rows.subject == [row.spec.subject for row in tiny.truth.rows]
    assert rows.frame_idx.tolist() == [row.frame for row in tiny.truth.rows]
    assert tiny.source.joint_set is JointSet.manopth
    assert tiny.source.left_as_shipped


def test_joints_and_cameras_are_the_truth(tiny: Tiny) -> None:
    seen = set()
    for i, slot, row in tiny.rows():
        np.testing.assert_array_equal(tiny.labels.K[i], row.K)
        np.testing.assert_array_equal(tiny.labels.T_world_from_cam[i], row.T_world_from_cam)
        assert not tiny.labels.joint_valid[i, 1 - slot].any()
        assert np.isnan(tiny.labels.joints_3d[i, 1 - slot]).all()
        assert tiny.labels.joint_valid[i, slot].tolist() == [has_joints(row)] * 21
        if not has_joints(row):
            assert np.isnan(tiny.labels.joints_3d[i, slot]).all()
            continue
        seen.add(row.spec.side)
        joints = tiny.labels.joints_3d[i, slot]
        np.testing.assert_allclose(joints, row.joints, rtol=0, atol=AGREE_M)
        for ours, true in zip(joints, row.joints, strict=True):
            for axis in (0, 1):
                focal, centre = row.K[axis, axis], row.K[axis, 2]
                pixel = focal * ours[axis] / ours[2] + centre
                assert abs(pixel - (focal * true[axis] / true[2] + centre)) < AGREE_PX
        # All eight cameras of a time step see the same hand.
        R, t = tiny.labels.T_world_from_cam[i, :3, :3], tiny.labels.T_world_from_cam[i, :3, 3]
        world = np.array([R @ p + t for p in joints])
        np.testing.assert_allclose(world, row.world_joints, rtol=0, atol=AGREE_M)
    assert seen == {"right", "left"}


def test_hands_decode_to_the_true_vertices_as_shipped(tiny: Tiny) -> None:
    seen = set()
    for i, slot, row in tiny.rows(SERIALS[::3]):
        names = ("theta", "beta", "beta_raw", "transl", "root_rest", "refit_error_m")
        assert all(np.isnan(getattr(tiny.labels, name)[i, 1 - slot]).all() for name in names)
        if not has_mano(row):
            assert all(np.isnan(getattr(tiny.labels, name)[i, slot]).all() for name in names)
            continue
        seen.add(row.spec.side)
        betas = tiny.truth.betas[row.spec.subject]
        np.testing.assert_array_equal(tiny.labels.beta_raw[i, slot], betas)
        arrays = published(tiny.sides, row.spec.side)
        # The wrist stays in the refit, so that of the model as shipped tells its translation.
        wrist = tiny.labels.root_rest[i, slot] + tiny.labels.transl[i, slot]
        rest = arrays["J_regressor"][0] @ (arrays["v_template"] + arrays["shapedirs"] @ betas)
        vertices, _ = skin(arrays, tiny.labels.theta[i, slot], betas)
        np.testing.assert_allclose(vertices + wrist - rest, row.vertices, rtol=0, atol=AGREE_M)
    assert seen == {"right", "left"}


def test_the_house_form_is_off_by_the_stated_refit_error(tiny: Tiny) -> None:
    for i, slot, row in tiny.rows(SERIALS[::3]):
        if not has_mano(row):
            continue
        fixed = tiny.sides[row.spec.side]
        off = decode(fixed, tiny.labels, i, slot, tiny.labels.beta[i, slot]) - row.vertices
        largest = max(float(np.linalg.norm(v)) for v in off)
        stated = tiny.labels.refit_error_m[i, slot]
        if slot == RIGHT:
            assert stated == 0
            assert largest < AGREE_M
            np.testing.assert_array_equal(tiny.labels.beta[i, slot], tiny.labels.beta_raw[i, slot])
        else:
            assert stated > 5e-4  # this model is random, so a refit cannot be good
            assert largest == pytest.approx(stated, abs=2e-6)  # labels are float32
        shaped = fixed["v_template"] + fixed["shapedirs"] @ tiny.labels.beta[i, slot]
        np.testing.assert_allclose(
            tiny.labels.root_rest[i, slot], fixed["J_regressor"][0] @ shaped, rtol=0, atol=1e-12
        )


def test_objects_are_the_truth(tiny: Tiny) -> None:
    names = [file.name for file in tiny.source.objects]
    assert len(names) == 21
    missing = 0
    for i, _, row in tiny.rows():
        num = len(row.spec.ycb_ids)
        for slot, ycb_id in enumerate(row.spec.ycb_ids):
            index = int(tiny.labels.object_id[i, slot])
            assert index == ycb_id - 1
            mesh = f"models/{names[index]}/textured_simple.obj"
            assert tiny.source.objects[index].mesh == mesh
            assert (tiny.truth.root / mesh).is_file()
            pose = tiny.labels.object_pose[i, slot]
            if (row.serial, row.frame, slot) in row.spec.no_object:
                missing += 1
                assert np.isnan(pose).all()
            else:
                true = row.object_poses[slot, :3]
                np.testing.assert_allclose(pose, true, rtol=0, atol=AGREE_M)
        assert (tiny.labels.object_id[i, num:] == -1).all()
        assert np.isnan(tiny.labels.object_pose[i, num:]).all()
        assert np.isnan(tiny.labels.object_start[i, num:]).all()
        assert tiny.labels.grasped_object[i] == row.spec.grasp
    assert missing == 6


def test_objects_start_where_their_camera_first_has_them(tiny: Tiny) -> None:
    for i, _, row in tiny.rows():
        for slot in range(len(row.spec.ycb_ids)):
            frames = [
                other
                for other in tiny.truth.rows
                if (other.spec.folder, other.serial) == (row.spec.folder, row.serial)
                and (row.serial, other.frame, slot) not in row.spec.no_object
            ]
            start = tiny.labels.object_start[i, slot]
            if frames:
                first = frames[0].world_objects[slot]
                np.testing.assert_allclose(start, first, rtol=0, atol=AGREE_M)
            else:
                assert (row.serial, slot) == (SERIALS[3], 1)
                assert np.isnan(start).all()


def test_a_job_gives_its_rows_in_their_order_from_a_pickle(tiny: Tiny) -> None:
    num = len(tiny.source.rows)
    chosen = np.random.default_rng(0).permutation(num)[: num // 3].tolist()
    chosen.append(5)  # a row may even come twice
    packed = pickle.dumps(tiny.source.label_job(chosen))
    assert len(packed) < 10e6
    stack = pickle.loads(packed)()  # noqa: S301  # our own bytes
    for name in LabelStack.__dataclass_fields__:
        # A refit solves for all distinct betas of a job at once; their number moves the last bits.
        np.testing.assert_allclose(
            getattr(stack, name), getattr(tiny.labels, name)[chosen], rtol=0, atol=1e-12
        )


def test_without_mano_there_are_joints_and_objects(tiny: Tiny, tmp_path: Path) -> None:
    copy(tiny.truth.root, tmp_path, labels=True)
    for file in (tmp_path / "calibration").glob("mano_*/mano.yml"):
        file.unlink()  # not needed
    source = open_source(tmp_path, None)
    labels = source.label_job(range(len(source.rows)))()
    for name in ("theta", "beta", "beta_raw", "transl", "root_rest", "refit_error_m"):
        assert np.isnan(getattr(labels, name)).all()
    for name in ("joints_3d", "joint_valid", "object_pose", "object_start", "K", "object_id"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(tiny.labels, name))


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_have_depth_and_slots(tiny: Tiny, tmp_path: Path) -> None:
    specs = [replace(spec, num_frames=1) for spec in tiny_specs()[:2]]
    truth = write_dexycb(tmp_path, tiny.sides, specs, pictures=True)
    source = open_source(tmp_path, None)
    assert source.picture is not None
    sides = set()
    for i, row in list(enumerate(truth.rows))[::5]:
        sides.add(row.spec.side)
        color = cv2.imread(str(tmp_path / source.rows.image[i]))
        assert color is not None
        assert color.shape == (480, 640, 3)
        depth, found = (
            source.picture(tmp_path, source.rows.image[i], kind)
            for kind in ("depth_mm", "segmentation")
        )
        assert depth is not None
        assert found is not None
        assert depth.dtype == np.uint16
        assert found.dtype == np.uint8
        y, x = np.mgrid[:480, :640]
        expected = np.where(y < 7, 0, y + 10 * x + 1000 * row.frame)
        np.testing.assert_array_equal(depth, expected)
        seg = segmentation(row.spec)
        for slot, ycb_id in enumerate(row.spec.ycb_ids):
            np.testing.assert_array_equal(found == 1 + slot, seg == ycb_id)
        hand = {"right": 255, "left": 254}[row.spec.side]
        np.testing.assert_array_equal(found == hand, seg == 255)
        np.testing.assert_array_equal(found == 0, seg == 0)
    assert sides == {"right", "left"}


# --- splits ---------------------------------------------------------------------------------------

# Dataset notes 2.5: all images, with a hand, of which right and left, sequences.
TABLE = {
    "s0_train": (465_504, 406_888, 203_096, 203_792, 800),
    "s0_val": (23_200, 22_728, 11_296, 11_432, 40),
    "s0_test": (93_264, 78_768, 39_608, 39_160, 160),
    "s1_train": (407_088, 356_600, 177_656, 178_944, 700),
    "s1_val": (58_592, 47_656, 23_848, 23_808, 100),
    "s1_test": (116_288, 104_128, 52_496, 51_632, 200),
    "s2_train": (436_476, 381_288, 190_500, 190_788, 1000),
    "s2_val": (72_746, 63_548, 31_750, 31_798, 1000),
    "s2_test": (72_746, 63_548, 31_750, 31_798, 1000),
    "s3_train": (436_416, 381_288, 189_712, 191_576, 750),
    "s3_val": (58_192, 50_736, 25_864, 24_872, 100),
    "s3_test": (87_360, 76_360, 38_424, 37_936, 150),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Official:
    source: DatasetSource
    subject: np.ndarray
    """Per row, from its path."""
    position: np.ndarray
    """Place of its sequence among the subject's."""
    serial: np.ndarray


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Official:
    root = tmp_path_factory.mktemp("official")
    write_official_sequences(root, official_counts())
    source = open_source(root, None)
    rows = source.rows
    # write_official_sequences ends each name with the place of the sequence.
    place = {name: (SUBJECTS.index(name[:19]), int(name[-6:])) for name in set(rows.sequence)}
    places = np.array([place[name] for name in rows.sequence])
    return Official(
        source=source,
        subject=places[:, 0],
        position=places[:, 1],
        serial=np.array([SERIALS.index(serial) for serial in rows.camera]),
    )


def test_official_splits_have_the_official_counts(official: Official) -> None:
    counts = official_counts()
    most = max(c.num_frames for subject in counts for c in subject)
    has_hand = np.zeros((10, 100, most), bool)
    is_right = np.zeros((10, 100), bool)
    for s, subject in enumerate(counts):
        for i, c in enumerate(subject):
            is_right[s, i] = c.side == "right"
            for frame in range(c.num_frames):
                has_hand[s, i, frame] = c.has_hand(frame)
    hand = has_hand[official.subject, official.position, official.source.rows.frame_idx]
    right = is_right[official.subject, official.position]
    found = {}
    for name, rows in official.source.splits.items():
        assert (np.diff(rows) > 0).all()
        seen = hand[rows]
        found[name] = (
            len(rows),
            int(seen.sum()),
            int((seen & right[rows]).sum()),
            int((seen & ~right[rows]).sum()),
            len(np.unique(100 * official.subject[rows] + official.position[rows])),
        )
    assert found == TABLE
    assert official.source.official_counts == {name: row[0] for name, row in TABLE.items()}
    assert len(official.source.rows) == 581_968


def split_of(setup: str, subject: int, position: int, serial: int) -> str:
    """Return where an image goes, as the toolkit's rules say."""
    if setup == "s0":
        if position % 5 != 4:
            return "train"
        return "val" if subject in (0, 1) else "test"
    if setup == "s1":
        return {6: "val", 7: "test", 8: "test"}.get(subject, "train")
    if setup == "s2":
        return {6: "val", 7: "test"}.get(serial, "train")
    grasp = position // 5
    if grasp in (3, 19):
        return "val"
    return "test" if grasp in (7, 11, 15) else "train"


def test_every_camera_of_every_sequence_is_in_the_right_split(official: Official) -> None:
    first = np.flatnonzero(official.source.rows.frame_idx == 0)
    assert len(first) == 8000
    for setup in ("s0", "s1", "s2", "s3"):
        split = np.full(len(official.source.rows), "in none")
        for name in ("train", "val", "test"):
            split[official.source.splits[f"{setup}_{name}"]] = name
        places = zip(
            official.subject[first].tolist(),
            official.position[first].tolist(),
            official.serial[first].tolist(),
            strict=True,
        )
        expected = [split_of(setup, *place) for place in places]
        assert split[first].tolist() == expected


def test_the_notes_count_time_steps_without_a_hand(official: Official) -> None:
    notes = official.source.notes
    assert notes["time_steps"] == 72_746
    assert notes["time_steps_without_hand"] == 9_198
    assert notes["sequences"] == 1000
    assert notes["missing_subjects"] == []
    assert notes["pose_npz_unusable"] == 0
    assert notes["first_labels_compared"] == 0  # there are no labels
    assert "splits" not in notes
    assert "warnings" not in notes


def test_a_part_of_the_dataset_keeps_its_official_subjects(tiny: Tiny) -> None:
    source = tiny.source
    subjects = {
        name: {source.rows.subject[i] for i in rows} for name, rows in source.splits.items()
    }
    assert subjects["s1_train"] == {SUBJECTS[0], SUBJECTS[3]}
    assert subjects["s1_val"] == subjects["s1_test"] == set()
    cameras = {source.rows.camera[i] for i in source.splits["s2_test"]}
    assert cameras == {SERIALS[7]}
    assert source.notes["missing_subjects"] == [
        s for i, s in enumerate(SUBJECTS) if i not in (0, 3)
    ]
    assert source.notes["sequences_of_subjects_without_100"] == {SUBJECTS[0]: 2, SUBJECTS[3]: 1}
    assert "not the official ones" in source.notes["splits"]


def test_other_entries_are_no_sequences_and_no_subjects(tiny: Tiny, tmp_path: Path) -> None:
    copy(tiny.truth.root, tmp_path)
    subject = tmp_path / SUBJECTS[0]
    (subject / ".DS_Store").write_bytes(b"x")
    (subject / "20200101_000000").write_bytes(b"a file with the name of a sequence")
    (subject / "20200101_000000_old").mkdir()
    (tmp_path / SUBJECTS[1]).write_bytes(b"a file with the name of a subject")
    (tmp_path / "20201022-subject-11").mkdir()
    (tmp_path / "20201022-subject-10.tar.gz").touch()
    source = open_source(tmp_path, None)
    assert source.rows.image == tiny.source.rows.image
    names = [
        f"{SUBJECTS[0]}/20200101_000000",
        f"{SUBJECTS[0]}/20200101_000000_old/",
        SUBJECTS[1],
        "20201022-subject-11/",
    ]
    assert source.notes["passed_over"] == {"count": 4, "names": names}
    assert source.notes["hidden_files"] == 1
    of_places, passed_over = source.notes["warnings"]
    assert of_places.startswith("2 of 2 subjects have other than 100 sequences (20200709-subject-")
    assert "were passed over for their names or kinds: 20200709-subject-01/2020" in passed_over


# --- the cross-check ------------------------------------------------------------------------------


def test_files_that_agree_are_said_to_agree(tiny: Tiny) -> None:
    notes = tiny.source.notes
    assert notes["time_steps"] == 10
    assert notes["time_steps_without_hand"] == 4
    assert notes["first_labels_compared"] == 3
    assert notes["first_labels_over_5_mm_from_pose_npz"] == 0
    assert notes["first_labels_largest_distance_m"] < 1e-6
    assert notes["decoded_joints_largest_distance_m"] < 1e-6
    assert notes["pose_npz_unusable"] == 0


@pytest.mark.parametrize("key", ["pose_m", "pose_y"])
def test_a_pose_file_that_is_off_is_noted(tiny: Tiny, tmp_path: Path, key: str) -> None:
    spec = tiny_specs()[0]
    write_dexycb(tmp_path, tiny.sides, [spec])
    path = tmp_path / spec.folder / "pose.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays[key][1:, ..., -2] += 0.008  # there is no hand in frame 0
    np.savez(path, allow_pickle=False, **arrays)
    notes = open_source(tmp_path, None).notes
    assert notes["first_labels_over_5_mm_from_pose_npz"] == 1
    assert notes["first_labels_largest_distance_m"] == pytest.approx(0.008, abs=1e-6)


def test_a_pose_file_that_is_missing_or_broken_is_noted(tiny: Tiny, tmp_path: Path) -> None:
    specs = tiny_specs()
    copy(tiny.truth.root, tmp_path, labels=True)
    (tmp_path / specs[0].folder / "pose.npz").unlink()
    path = tmp_path / specs[2].folder / "pose.npz"
    path.write_bytes(path.read_bytes()[:-40])
    notes = open_source(tmp_path, tiny.mano).notes
    assert notes["pose_npz_unusable"] == 2
    assert specs[0].folder in notes["pose_npz_first_error"]
    assert notes["first_labels_compared"] == 1


def test_another_mano_is_noted(tiny: Tiny, tmp_path: Path) -> None:
    write_mano(tmp_path, seed=5)
    notes = open_source(tiny.truth.root, load_mano(tmp_path)).notes
    assert notes["decoded_joints_largest_distance_m"] > 0.01
