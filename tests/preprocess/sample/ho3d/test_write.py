"""The HO-3D sample: official layout, official meaning, read back by the real reader."""

import itertools
import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import smplx
import torch
from scipy.spatial.transform import Rotation

from model.hand import RIGHT
from model.mano.files import ManoModels, load_mano, mano_forward
from preprocess.records import DatasetSource, LabelStack
from preprocess.sample.hand.mesh import write_mano
from preprocess.sample.ho3d import write as ho3d
from preprocess.sample.ho3d.scene import (
    SEQUENCES,
    ImageTruth,
    Slot,
    calibration_poses,
    cameras_of,
    draw_camera,
    draw_frame,
    slot_of,
    unlisted,
)
from preprocess.sample.objects.ycb import stand_in_object
from preprocess.sample.python2_pickle import python2_pickle
from preprocess.sample.render.hand_object import RenderedFrame
from preprocess.sources.ho3d.files import recording_of
from preprocess.sources.ho3d.source import open_source

SEED = 5
NUM, NUM_EVAL = 24, 4
FLIP = np.array([1.0, -1.0, -1.0])
TIPS = [744, 333, 444, 555, 672]
SIMPLE_FROM_MANO = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Labels need no pictures: small blank ones."""
    patch.setattr(ho3d, "render_frame", blank)
    patch.setattr(ho3d, "SIZE_HW", (48, 64))


def blank(
    _sequence: object, _frame: int, _K: object, _T: object, size_hw: tuple[int, int], look_key: Any
) -> RenderedFrame:
    assert len(look_key) == 4
    return RenderedFrame(
        rgb=np.zeros((*size_hw, 3), np.uint8),
        depth_m=np.zeros(size_hw, np.float32),
        segmentation=np.zeros(size_hw, np.uint8),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    root: Path
    source: DatasetSource
    labels: LabelStack
    slots: list[Slot]
    """By row."""
    frames: list[ImageTruth]


@pytest.fixture(scope="module")
def mano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mano")
    write_mano(folder)
    return folder


@pytest.fixture(scope="module")
def mano(mano_folder: Path) -> ManoModels:
    return load_mano(mano_folder)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, mano: ManoModels) -> Sample:
    root = tmp_path_factory.mktemp("sample")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        counts = ho3d.write(root, NUM, SEED, NUM_EVAL, 1, None)
    assert counts == {"train": NUM, "evaluation": NUM_EVAL}
    source = open_source(root, mano)
    slots = [slot_of("train", i) for i in range(NUM)]
    slots += [slot_of("evaluation", i) for i in range(NUM_EVAL)]
    by_name = {f"{s.part}/{s.sequence}/rgb/{s.stem}.jpg": s for s in slots}
    rows = [by_name[image] for image in source.rows.image]
    return Sample(
        root=root,
        source=source,
        labels=source.label_job(range(NUM + NUM_EVAL))(),
        slots=rows,
        frames=[draw_frame(SEED, slot) for slot in rows],
    )


def load_meta(root: Path, slot: Slot) -> dict[str, Any]:
    with warnings.catch_warnings(), (meta_path(root, slot)).open("rb") as file:
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's modules have other names now
        meta = pickle.load(file, encoding="latin1")  # noqa: S301  # as the official tools do
    assert isinstance(meta, dict)
    return meta


def meta_path(root: Path, slot: Slot) -> Path:
    return root / slot.part / slot.sequence / "meta" / f"{slot.stem}.pkl"


def annotated(sample: Sample, part: str) -> list[int]:
    return [i for i, s in enumerate(sample.slots) if s.part == part and not s.is_unannotated]


# --- round trip -----------------------------------------------------------------------------------


def test_the_reader_finds_every_listed_frame(sample: Sample) -> None:
    assert len({(s.part, s.sequence, s.stem) for s in sample.slots}) == NUM + NUM_EVAL
    assert sample.source.notes["version"] == "v3"
    assert len(sample.source.splits["train"]) == NUM
    assert len(sample.source.splits["evaluation"]) == NUM_EVAL
    assert sample.source.rows.sequence == (
        ["train/ABF10"] * 12 + ["train/ABF11"] * 12 + ["evaluation/SB11"] * NUM_EVAL
    )
    # Both cameras show one recording.
    assert len(sample.source.splits["train_holdout"]) == 0


def test_labels_equal_the_truth(sample: Sample, mano: ManoModels) -> None:
    labels = sample.labels
    for i in annotated(sample, "train") + annotated(sample, "evaluation"):
        slot, frame = sample.slots[i], sample.frames[i]
        assert labels.joint_valid[i, RIGHT].all()
        np.testing.assert_allclose(labels.joints_3d[i, RIGHT], frame.joints_3d, atol=1e-4)
        ours, theirs = (
            joints @ frame.K.T for joints in (labels.joints_3d[i, RIGHT], frame.joints_3d)
        )
        np.testing.assert_allclose(
            ours[:, :2] / ours[:, 2:], theirs[:, :2] / theirs[:, 2:], atol=0.05
        )
        np.testing.assert_array_equal(labels.K[i], frame.K)
        assert sample.source.objects[labels.object_id[i, 0]].name == slot.object_name
        if slot.lacks_object:
            assert np.isnan(labels.object_pose[i]).all()
        else:
            points = stand_in_object(slot.object_name).vertices
            pose, true = labels.object_pose[i, 0], frame.T_cam_from_obj
            moved = points @ pose[:, :3].T + pose[:, 3]
            np.testing.assert_allclose(moved, points @ true[:3, :3].T + true[:3, 3], atol=1e-4)
    rows = annotated(sample, "train")
    vertices, _ = mano_forward(
        mano.right, labels.theta[rows, RIGHT], labels.beta[rows, RIGHT], labels.transl[rows, RIGHT]
    )
    true_vertices = np.stack([sample.frames[i].vertices for i in rows])
    np.testing.assert_allclose(vertices, true_vertices, atol=1e-4)
    np.testing.assert_array_equal(
        labels.beta_raw[rows, RIGHT], np.stack([sample.frames[i].beta for i in rows])
    )
    assert labels.vertices_check_m[rows].max() < 1e-4


def test_the_hand_is_in_front_of_the_camera_and_in_the_image(sample: Sample) -> None:
    for i in annotated(sample, "train") + annotated(sample, "evaluation"):
        joints, K = sample.labels.joints_3d[i, RIGHT], sample.labels.K[i]
        assert 0.3 < joints[:, 2].min() < joints[:, 2].max() < 1.5
        pixels = joints @ K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        inside = ((pixels > 0) & (pixels < [639, 479])).all(1)
        # A hand on its way may come from outside.
        assert inside.all() or sample.slots[i].frame < 3


def test_cameras_of_a_recording_see_one_hand(sample: Sample) -> None:
    world: dict[tuple[str, str], list[np.ndarray]] = {}
    for i in annotated(sample, "train") + annotated(sample, "evaluation"):
        slot = sample.slots[i]
        T = sample.labels.T_world_from_cam[i]
        joints = sample.labels.joints_3d[i, RIGHT] @ T[:3, :3].T + T[:3, 3]
        points = np.vstack([joints, sample.labels.object_start[i, 0]])
        world.setdefault((slot.recording, slot.stem), []).append(points)
    several = [found for found in world.values() if len(found) > 1]
    assert len(several) == 11  # one camera has a frame of None
    for found in several:
        np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_evaluation_shares_a_recording_with_train() -> None:
    seen = []
    for part, sequence in (("train", "SB10"), ("train", "SB12"), ("evaluation", "SB11")):
        frame = draw_frame(SEED, Slot(part=part, sequence=sequence, take=0, frame=3))
        R, t = frame.T_cam_from_world[:3, :3], frame.T_cam_from_world[:3, 3]
        seen.append((frame.vertices - t) @ R)
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-9)
    np.testing.assert_allclose(seen[2], seen[0], atol=1e-9)


# --- the files themselves -------------------------------------------------------------------------


def test_files_are_those_of_the_official_layout(sample: Sample) -> None:
    found = {
        path.relative_to(sample.root).as_posix()
        for path in sample.root.rglob("*")
        if path.is_file() and path.relative_to(sample.root).parts[0] != "models"
    }
    takes = {unlisted(slot) for slot in sample.slots if slot.part == "train"}
    expected = {f"{part}.txt" for part in ("train", "evaluation")}
    expected |= {"evaluation_xyz.json", "evaluation_verts.json"}
    for slot in (*sample.slots, *takes):
        folder = f"{slot.part}/{slot.sequence}"
        expected |= {f"{folder}/rgb/{slot.stem}.jpg", f"{folder}/depth/{slot.stem}.png"}
        if slot.has_meta:
            expected.add(f"{folder}/meta/{slot.stem}.pkl")
        if slot.part == "train":
            expected.add(f"{folder}/seg/{slot.stem}.png")
    for recording, num in (("ABF1", 2), ("SB1", 3)):
        folder = f"calibration/{recording}/calibration"
        expected |= {f"{folder}/cam_orders.txt", f"{folder}/cam_0_depth_scale.txt"}
        expected |= {f"{folder}/trans_{i}.txt" for i in range(num)}
        expected |= {f"{folder}/cam_{i}_intrinsics.txt" for i in range(num)}
    assert found == expected
    models = {path.parent.name for path in sample.root.glob("models/*/textured_simple.obj")}
    assert models == {slot.object_name for slot in sample.slots}


def test_objects_cameras_and_recordings_are_the_official_ones() -> None:
    official = {
        "003_cracker_box", "004_sugar_box", "006_mustard_bottle", "010_potted_meat_can",
        "011_banana", "019_pitcher_base", "021_bleach_cleanser", "025_mug", "035_power_drill",
        "037_scissors",
    }  # fmt: skip
    seen: dict[str, set[str]] = {"train": set(), "evaluation": set()}
    for part, names in SEQUENCES.items():
        for name in names:
            slot = Slot(part=part, sequence=name, take=0, frame=0)
            recording, camera = recording_of(name)
            assert slot.recording == recording
            assert slot.camera == (0 if camera == "single" else int(camera))
            seen[part].add(slot.object_name)
    assert seen["evaluation"] | seen["train"] == official
    assert seen["evaluation"] - seen["train"] == {"019_pitcher_base"}
    assert cameras_of("SB1") == [0, 1, 2]
    assert cameras_of("MC1") == []


def test_meta_has_the_official_keys_and_shapes(sample: Sample) -> None:
    shared: dict[str, tuple[int, ...]] = {
        "camMat": (3, 3), "objRot": (3, 1), "objTrans": (3,), "objCorners3D": (8, 3),
        "objCorners3DRest": (8, 3),
    }  # fmt: skip
    own: dict[str, dict[str, tuple[int, ...]]] = {
        "train": {"handPose": (48,), "handTrans": (3,), "handBeta": (10,), "handJoints3D": (21, 3)},
        "evaluation": {"handJoints3D": (3,)},
    }
    for slot in sample.slots:
        meta = load_meta(sample.root, slot)
        texts = {"objName", "objLabel"} | (
            {"handBoundingBox"} if slot.part == "evaluation" else set()
        )
        shapes = shared | own[slot.part]
        assert meta.keys() == shapes.keys() | texts
        if slot.is_unannotated:
            assert set(meta.values()) == {None}
            continue
        assert meta["objName"] == slot.object_name
        for key, shape in shapes.items():
            if slot.lacks_object and key in ("objRot", "objTrans"):
                assert meta[key] is None
            else:
                assert meta[key].shape == shape
                assert meta[key].dtype == np.float64


def test_smplx_decodes_the_pose_to_the_joints(sample: Sample, mano_folder: Path) -> None:
    layer = smplx.MANO(
        str(mano_folder), use_pca=False, flat_hand_mean=True, is_rhand=True, ext="npz"
    )
    for i in annotated(sample, "train")[:8]:
        meta = load_meta(sample.root, sample.slots[i])
        pose, beta, trans = (
            torch.tensor(meta[key][None]).float() for key in ("handPose", "handBeta", "handTrans")
        )
        out = layer(betas=beta, global_orient=pose[:, :3], hand_pose=pose[:, 3:], transl=trans)
        vertices = out.vertices[0].detach().numpy()
        joints = np.concatenate([out.joints[0].detach().numpy(), vertices[TIPS]])
        np.testing.assert_allclose(joints, meta["handJoints3D"], atol=2e-6)
        assert (meta["handJoints3D"][:, 2] < 0).all()  # OpenGL
        np.testing.assert_allclose(vertices * FLIP, sample.frames[i].vertices, atol=2e-6)


def test_object_corners_are_the_moved_box(sample: Sample) -> None:
    for i in annotated(sample, "train")[::5]:
        slot, meta = sample.slots[i], load_meta(sample.root, sample.slots[i])
        points = stand_in_object(slot.object_name).vertices
        assert {tuple(corner) for corner in meta["objCorners3DRest"]} == set(
            itertools.product(*zip(points.min(0), points.max(0), strict=True))
        )
        if slot.lacks_object:
            continue
        R = Rotation.from_rotvec(meta["objRot"][:, 0]).as_matrix()
        for rest, moved in zip(meta["objCorners3DRest"], meta["objCorners3D"], strict=True):
            np.testing.assert_allclose(R @ rest + meta["objTrans"], moved, atol=1e-9)


def test_published_truth_is_opengl_in_manos_order(sample: Sample) -> None:
    xyz, verts = (
        np.array(json.loads((sample.root / f"evaluation_{name}.json").read_text()))
        for name in ("xyz", "verts")
    )
    assert xyz.shape == (NUM_EVAL, 21, 3)
    assert verts.shape == (NUM_EVAL, 778, 3)
    lines = (sample.root / "evaluation.txt").read_text().split()
    for row, line in enumerate(lines):
        i = [f"{s.sequence}/{s.stem}" for s in sample.slots[NUM:]].index(line) + NUM
        frame, meta = sample.frames[i], load_meta(sample.root, sample.slots[i])
        np.testing.assert_allclose(xyz[row][SIMPLE_FROM_MANO], frame.joints_3d * FLIP, atol=1e-9)
        np.testing.assert_allclose(verts[row], frame.vertices * FLIP, atol=1e-7)
        np.testing.assert_array_equal(meta["handJoints3D"], xyz[row][0])
        pixels = frame.vertices @ frame.K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        box = np.array(meta["handBoundingBox"])
        assert (box[:2] <= pixels.min(0)).all()
        assert (box[2:] >= pixels.max(0)).all()
        assert (box[2:] - box[:2] < np.ptp(pixels, axis=0) + 2).all()


def test_the_gaps_of_the_real_set_are_there(sample: Sample) -> None:
    trains = [slot for slot in sample.slots if slot.part == "train"]
    assert any(slot.is_unannotated for slot in trains)
    assert any(slot.lacks_object for slot in trains)
    extra = {unlisted(slot) for slot in trains}
    with_meta = [slot for slot in extra if meta_path(sample.root, slot).is_file()]
    assert 0 < len(with_meta) < len(extra)
    for slot in with_meta:
        assert set(load_meta(sample.root, slot).values()) == {None}
    listed = (sample.root / "train.txt").read_text().split()
    assert not {f"{slot.sequence}/{slot.stem}" for slot in extra} & set(listed)
    for i, slot in enumerate(sample.slots):
        if slot.is_unannotated:
            assert not sample.labels.joint_valid[i].any()
            assert sample.labels.object_id[i, 0] == -1


def test_evaluation_without_published_truth_has_wrists(sample: Sample, tmp_path: Path) -> None:
    root = tmp_path / "without"
    root.mkdir()
    for path in sample.root.iterdir():
        if not path.name.startswith("evaluation_"):
            (root / path.name).symlink_to(path)
    source = open_source(root, None)
    labels = source.label_job(source.splits["evaluation"].tolist())()
    assert labels.joint_valid[:, RIGHT].sum(1).tolist() == [1] * NUM_EVAL
    np.testing.assert_allclose(
        labels.joints_3d[:, RIGHT, 0], sample.labels.joints_3d[NUM:, RIGHT, 0], atol=1e-9
    )


def test_calibration_is_relative_to_the_first_camera_of_an_unsorted_list(sample: Sample) -> None:
    order, poses = calibration_poses(SEED, "SB1")
    assert order == [2, 1, 0]
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-12)
    folder = sample.root / "calibration/SB1/calibration"
    assert (folder / "cam_orders.txt").read_text().split() == ["2", "1", "0"]
    for i, pose in enumerate(poses):
        np.testing.assert_allclose(np.loadtxt(folder / f"trans_{i}.txt"), pose, atol=1e-12)
        frame = draw_frame(SEED, Slot(part="train", sequence=f"SB1{order[i]}", take=0, frame=0))
        line = (folder / f"cam_{i}_intrinsics.txt").read_text().strip()
        values = {key: float(value) for key, value in (v.split(":") for v in line.split(","))}
        assert [values[key] for key in ("fx", "fy", "ppx", "ppy")] == [
            frame.K[0, 0], frame.K[1, 1], frame.K[0, 2], frame.K[1, 2],
        ]  # fmt: skip


# --- purity, versions, pictures -------------------------------------------------------------------


def test_a_smaller_sample_is_part_of_a_larger_one(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)
    ho3d.write(tmp_path, 14, SEED, 3, 1, None)
    for path in tmp_path.rglob("meta/*.pkl"):
        assert path.read_bytes() == (sample.root / path.relative_to(tmp_path)).read_bytes()
    assert set((tmp_path / "train.txt").read_text().split()) <= set(
        (sample.root / "train.txt").read_text().split()
    )
    assert draw_camera(SEED + 1, "ABF1", 0)[0][0, 0] != draw_camera(SEED, "ABF1", 0)[0][0, 0]


def test_slots_never_repeat() -> None:
    for part in ("train", "evaluation"):
        slots = [slot_of(part, i) for i in range(2_000)]
        assert len({(s.sequence, s.stem) for s in slots}) == 2_000
        assert not {(u.sequence, u.stem) for u in map(unlisted, slots)} & {
            (s.sequence, s.stem) for s in slots
        }


def test_version_2_has_png_and_no_calibration(
    tmp_path: Path, mano: ManoModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)
    ho3d.write(tmp_path, 3, SEED, 1, 1, None, version="v2")
    assert not (tmp_path / "calibration").exists()
    source = open_source(tmp_path, mano)
    assert source.notes["version"] == "v2"
    for image in source.rows.image:
        assert (tmp_path / image).read_bytes().startswith(b"\x89PNG")
    assert source.label_job([0])().joint_valid[0, RIGHT].all()


def test_unknown_versions_and_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="version must be one of v2, v3, got 'v4'"):
        ho3d.write(tmp_path, 1, 0, None, 1, None, version="v4")
    with pytest.raises(TypeError, match="no bool"):
        python2_pickle({"x": True})


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_pictures_show_the_labels(tmp_path: Path, version: str) -> None:
    slot = slot_of("train", 11)  # the hand holds the object
    frame = ho3d.write_one(tmp_path, SEED, version, slot)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation.txt").write_text("")
    (tmp_path / "train.txt").write_text(f"{slot.sequence}/{slot.stem}\n")
    source = open_source(tmp_path, None)
    assert source.picture is not None
    depth, classes = (
        source.picture(tmp_path, source.rows.image[0], kind)
        for kind in ("depth_mm", "segmentation")
    )
    assert depth is not None
    assert classes is not None
    assert depth.shape == classes.shape == (480, 640)
    image = cv2.imread(str(tmp_path / source.rows.image[0]))
    assert image is not None
    assert image.shape == (480, 640, 3)
    assert image.std() > 10
    T = frame.T_cam_from_obj
    points = {
        255: frame.vertices,
        1: stand_in_object(slot.object_name).vertices @ T[:3, :3].T + T[:3, 3],
    }
    for value, own in points.items():
        pixels = own @ frame.K.T
        at = np.round(pixels[:, :2] / pixels[:, 2:]).astype(int)
        inside = ((at >= 0) & (at < [640, 480])).all(1)
        shown = classes[at[inside, 1], at[inside, 0]] == value
        away_mm = own[inside, 2] * 1000 - depth[at[inside, 1], at[inside, 0]]
        # What is shown as itself lies at or behind the depth there; some of it is the surface.
        assert shown.mean() > 0.15
        assert np.median(np.abs(away_mm[shown])) < 60
        assert (away_mm[shown] > -8).mean() > 0.95
        assert (np.abs(away_mm[shown]) < 2).mean() > 0.2
