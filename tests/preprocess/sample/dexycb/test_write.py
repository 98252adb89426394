import pickle
from collections import defaultdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh
import yaml
from scipy.spatial.transform import Rotation

from model.mano.files import load_mano
from preprocess.sample.dexycb import write as dexycb
from preprocess.sample.dexycb.scene import GraspPlan, plans, truth, truth_of
from preprocess.sample.dexycb.write import label_of, pose_arrays
from preprocess.sample.generate import write_sample
from preprocess.sample.objects.ycb import stand_in_object
from preprocess.sample.render.hand_object import RenderedFrame
from preprocess.sources.dexycb.source import open_source
from tests.preprocess.sources.dexycb.tree import SERIALS, STANDARD, SUBJECTS, TIPS, skin

SEED, NUM = 1, 64


def blank(*_: object, **__: object) -> RenderedFrame:
    """A picture that costs nothing, with every label."""
    labels = np.zeros((480, 640), np.uint8)
    labels[:40] = np.repeat([1, 2, 3, 4, 255], 8)[:, None]
    depth = np.full((480, 640), 0.8125, np.float32)
    return RenderedFrame(
        rgb=np.full((480, 640, 3), 90, np.uint8), depth_m=depth, segmentation=labels
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("dexycb") / "sample"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dexycb, "render_frame", blank)
        summary = write_sample("dexycb", path, NUM, SEED, workers=1)
    assert summary.num_images == {"images": NUM}
    return path


def sequences(root: Path) -> list[Path]:
    return sorted(p.parent for p in root.glob("*/*/meta.yml"))


def meta_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / "meta.yml").read_text())
    return content


@lru_cache(maxsize=NUM)
def labels(folder: Path, serial: str, frame: int) -> dict[str, np.ndarray]:
    with np.load(folder / serial / f"labels_{frame:06d}.npz") as file:
        return dict(file)


def plan_of(folder: Path) -> GraspPlan:
    return next(p for p in plans(SEED, NUM) if p.folder == f"{folder.parent.name}/{folder.name}")


def extrinsics(root: Path, folder: Path) -> dict[str, np.ndarray]:
    text = (
        root / f"calibration/extrinsics_{meta_of(folder)['extrinsics']}/extrinsics.yml"
    ).read_text()
    entries = yaml.load(text, yaml.FullLoader)["extrinsics"]  # as the toolkit does
    return {key: np.array(value).reshape(3, 4) for key, value in entries.items()}


# --- files ----------------------------------------------------------------------------------------


def test_the_tree_is_the_official_one(root: Path) -> None:
    found = sequences(root)
    assert len({p.parent for p in found}) == 2
    assert {p.parent.name for p in found} <= set(SUBJECTS)
    assert len(found) == 4
    count = 0
    for folder in found:
        meta = meta_of(folder)
        assert meta["serials"] == list(SERIALS)
        frames = range(int(str(meta["num_frames"])))
        expected = {f"color_{f:06d}.jpg" for f in frames}
        expected |= {f"aligned_depth_to_color_{f:06d}.png" for f in frames}
        expected |= {f"labels_{f:06d}.npz" for f in frames}
        for serial in SERIALS:
            assert {p.name for p in (folder / serial).iterdir()} == expected
            count += len(frames)
        names = [dexycb_name(i) for i in meta["ycb_ids"]]
        for name in names:
            assert (root / "models" / name / "textured_simple.obj").is_file()
    assert count == NUM
    sides: dict[str, set[str]] = defaultdict(set)
    for folder in found:
        sides[folder.parent.name] |= set(meta_of(folder)["mano_sides"])
    assert all(both == {"right", "left"} for both in sides.values())
    assert [p.name for p in root.glob("2*/.*")] == [".DS_Store"]


def dexycb_name(ycb_id: int) -> str:
    """From the list in the dataset's notes, counted from one."""
    short = {1: "002_", 2: "003_", 3: "004_", 4: "005_", 5: "006_", 6: "007_", 7: "008_",
             8: "009_", 9: "010_", 10: "011_", 11: "019_", 12: "021_", 13: "024_", 14: "025_",
             15: "035_", 16: "036_", 17: "037_", 18: "040_", 20: "052_", 21: "061_"}  # fmt: skip
    from preprocess.sample.objects.ycb import OBJECTS

    (name,) = (name for name in OBJECTS if name.startswith(short[ycb_id]))
    return name


def test_pictures_are_what_the_toolkit_expects(root: Path) -> None:
    folder = sequences(root)[0] / SERIALS[3]
    data = (folder / "color_000001.jpg").read_bytes()
    at = data.index(b"\xff\xc0")  # SOF0: baseline
    assert int.from_bytes(data[at + 5 : at + 7]) == 480
    assert int.from_bytes(data[at + 7 : at + 9]) == 640
    assert data[at + 11] == 0x22  # 4:2:0
    depth = cv2.imread(str(folder / "aligned_depth_to_color_000001.png"), cv2.IMREAD_UNCHANGED)
    assert depth is not None
    assert depth.dtype == np.uint16
    assert depth.shape == (480, 640)
    assert (depth == 812).all()  # 0.8125 m


def test_labels_have_the_official_types_and_shapes(root: Path) -> None:
    for folder in sequences(root):
        num = len(plan_of(folder).ycb_ids)
        found = {k: (v.dtype.name, v.shape) for k, v in labels(folder, SERIALS[0], 1).items()}
        assert found == {
            "seg": ("uint8", (480, 640)),
            "pose_y": ("float32", (num, 3, 4)),
            "pose_m": ("float32", (1, 51)),
            "joint_3d": ("float32", (1, 21, 3)),
            "joint_2d": ("float32", (1, 21, 2)),
        }


def test_calibration_has_the_tags_and_keys_of_the_real_files(root: Path) -> None:
    files = sorted(root.glob("calibration/extrinsics_*/extrinsics.yml"))
    assert len(files) == 2
    for file in files:
        text = file.read_text()
        with pytest.raises(yaml.YAMLError, match="python/tuple"):
            yaml.safe_load(text)
        content = yaml.load(text, yaml.FullLoader)  # as the toolkit does
        assert content["master"] == "840412060917"
        assert set(content["extrinsics"]) == {*SERIALS, "apriltag"}
        assert all(isinstance(v, tuple) and len(v) == 12 for v in content["extrinsics"].values())
        np.testing.assert_allclose(
            np.reshape(content["extrinsics"]["840412060917"], (3, 4)), np.eye(4)[:3], atol=1e-12
        )
    for serial in SERIALS:
        file = root / f"calibration/intrinsics/{serial}_640x480.yml"
        color = yaml.safe_load(file.read_text())["color"]
        assert set(color) == {"fx", "fy", "ppx", "ppy"}
        assert 580 < color["fx"] < 650
    for folder in sequences(root):
        (calib,) = meta_of(folder)["mano_calib"]
        betas = yaml.safe_load((root / f"calibration/mano_{calib}/mano.yml").read_text())["betas"]
        assert len(betas) == 10


def test_the_table_is_square_to_the_apriltag(root: Path) -> None:
    """Objects that stand have their up axis along the tag's z."""
    folder = sequences(root)[0]
    tag = extrinsics(root, folder)["apriltag"]
    pose = np.load(folder / "pose.npz")["pose_y"][0, 0]
    up = Rotation.from_quat(pose[:4]).as_matrix()[:, 2]
    assert up @ tag[:, 2] == pytest.approx(1.0, abs=1e-6)


# --- labels ---------------------------------------------------------------------------------------


def decoded(root: Path, mano: str, side: str, pose_m: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """The toolkit's decoding by smplx's skinning: 21 joints of one label."""
    with np.load(root / mano / f"MANO_{side.upper()}.npz") as file:
        arrays = dict(file)
    fingers = arrays["hands_mean"] + pose_m[3:48].astype(float) @ arrays["hands_components"]
    vertices, skeleton = skin(arrays, np.concatenate([pose_m[:3], fingers]), betas)
    joints = np.concatenate([skeleton, vertices[list(TIPS[side])]])[list(STANDARD)]
    return np.asarray(joints + pose_m[48:])


def test_the_toolkit_decodes_the_hands_with_the_shipped_models_only(root: Path) -> None:
    checked = {"right": 0, "left": 0}
    for folder in sequences(root):
        meta = meta_of(folder)
        (side,), (calib,) = meta["mano_sides"], meta["mano_calib"]
        text = (root / f"calibration/mano_{calib}/mano.yml").read_text()
        betas = np.array(yaml.safe_load(text)["betas"])
        for serial in SERIALS[::3]:
            for frame in range(plan_of(folder).num_frames):
                label = labels(folder, serial, frame)
                if not label["pose_m"].any():
                    continue
                args = (side, label["pose_m"][0], betas)
                np.testing.assert_allclose(
                    decoded(root, "mano_shipped", *args), label["joint_3d"][0], atol=2e-6
                )
                fixed = decoded(root, "mano", *args) - label["joint_3d"][0]
                assert (np.abs(fixed).max() > 1e-3) == (side == "left")
                color = yaml.safe_load(
                    (root / f"calibration/intrinsics/{serial}_640x480.yml").read_text()
                )["color"]
                for (x, y, z), (u, v) in zip(
                    label["joint_3d"][0], label["joint_2d"][0], strict=True
                ):
                    assert u == pytest.approx(color["fx"] * x / z + color["ppx"], abs=1e-3)
                    assert v == pytest.approx(color["fy"] * y / z + color["ppy"], abs=1e-3)
                checked[side] += 1
    assert min(checked.values()) >= 6


def test_missing_hands_are_runs_at_the_ends_and_the_same_in_all_cameras(root: Path) -> None:
    kinds = []
    for folder in sequences(root):
        per_camera = []
        for serial in SERIALS:
            seen = []
            for frame in range(plan_of(folder).num_frames):
                label = labels(folder, serial, frame)
                hand = bool((label["pose_m"] != 0).any())
                assert hand == bool((label["joint_3d"] != -1).any())
                assert hand == bool((label["joint_2d"] != -1).any())
                assert hand == bool((label["seg"] == 255).any())
                seen.append(hand)
            per_camera.append(seen)
        assert all(seen == per_camera[0] for seen in per_camera)
        pose_m = np.load(folder / "pose.npz")["pose_m"]
        assert (pose_m != 0).any((1, 2)).tolist() == per_camera[0]
        shown = [
            truth(SEED, NUM, f"{folder.parent.name}/{folder.name}/{SERIALS[0]}/color_{f:06d}.jpg")
            for f in range(len(per_camera[0]))
        ]
        unlabelled = any(t.hand_there and not t.labelled for t in shown)
        kinds.append((tuple(per_camera[0]), unlabelled))
    # Two frames each: a leading run, none, a trailing run, and a hand that only lacks its label.
    assert sorted(kinds) == [
        ((False, True), False), ((False, True), True), ((True, False), False), ((True, True), False)
    ]  # fmt: skip


def test_longer_sequences_have_no_gap_inside() -> None:
    for plan in plans(0, 2400):
        runs = np.flatnonzero(np.diff(plan.labelled().astype(int)))
        assert plan.labelled().any()
        assert len(runs) == (plan.num_before + plan.num_unlabelled > 0) + (plan.num_after > 0)
    leading = [plan.num_before > 0 for plan in plans(0, 2400)]
    assert 0.5 < np.mean(leading) < 0.9


def test_an_object_loses_its_pose_in_one_sequence(root: Path) -> None:
    lost = []
    for folder in sequences(root):
        pose_y = np.load(folder / "pose.npz")["pose_y"]
        for frame in range(len(pose_y)):
            for slot in range(pose_y.shape[1]):
                gone = (pose_y[frame, slot] == [0, 0, 0, 1, 0, 0, 0]).all()
                label = labels(folder, SERIALS[4], frame)
                assert gone == (label["pose_y"][slot] == 0).all()
                ycb_id = plan_of(folder).ycb_ids[slot]
                assert gone == (not (label["seg"] == ycb_id).any())
                if gone:
                    lost.append((folder.name, frame))
                    assert slot != plan_of(folder).grasp_ind
    assert len(lost) == 1


def test_pose_npz_agrees_with_the_labels_but_in_one_sequence(root: Path) -> None:
    apart = {}
    for folder in sequences(root):
        pose_y = np.load(folder / "pose.npz")["pose_y"].astype(float)
        worst = 0.0
        for serial, T in extrinsics(root, folder).items():
            if serial == "apriltag":
                continue
            for frame in range(len(pose_y)):
                for slot, pose in enumerate(labels(folder, serial, frame)["pose_y"]):
                    if not pose.any():
                        continue
                    world = T[:, :3] @ pose[:, 3] + T[:, 3]
                    worst = max(worst, float(np.linalg.norm(world - pose_y[frame, slot, 4:])))
                    turn = Rotation.from_quat(pose_y[frame, slot, :4]).as_matrix()
                    np.testing.assert_allclose(T[:, :3] @ pose[:, :3], turn, atol=1e-5)
        apart[folder.name] = worst
    largest = sorted(apart.values())
    assert largest[2] < 1e-5
    assert largest[3] == pytest.approx(0.010, abs=2e-4)


def test_some_hands_are_cut_by_the_border(root: Path) -> None:
    outside = 0
    for folder in sequences(root):
        for serial in SERIALS:
            for frame in range(plan_of(folder).num_frames):
                label = labels(folder, serial, frame)
                if label["pose_m"].any():
                    u, v = label["joint_2d"][0].T
                    out = (u < 0) | (u > 639) | (v < 0) | (v > 479)
                    outside += bool(out.any() and not out.all())
    assert outside >= 1


def test_what_is_grasped_cannot_be_told_from_the_index(root: Path) -> None:
    """The rule of most real sequences: object i // 5 of the twenty, for the i-th of a subject."""
    by_subject: dict[str, list[Path]] = defaultdict(list)
    for folder in sequences(root):
        by_subject[folder.parent.name].append(folder)
    follows = [
        meta["ycb_ids"][meta["ycb_grasp_ind"]] == 1 + i // 5
        for folders in by_subject.values()
        for i, meta in enumerate(map(meta_of, folders))
    ]
    assert not all(follows)


# --- truth ----------------------------------------------------------------------------------------


def test_the_reader_gives_the_truth_back(root: Path) -> None:
    source = open_source(root, load_mano(root / "mano"))
    assert len(source.rows) == NUM
    for name in ("s1_train", "s1_test", "s2_train", "s2_val", "s2_test"):
        assert len(source.splits[name])
    stack = source.label_job(range(NUM))()
    for i, image in enumerate(source.rows.image):
        true = truth(SEED, NUM, image)
        slot = ("right", "left").index(true.plan.side)
        np.testing.assert_allclose(stack.K[i], true.K)
        np.testing.assert_allclose(stack.T_world_from_cam[i], true.T_world_from_cam, atol=1e-12)
        assert stack.grasped_object[i] == true.plan.grasp_ind
        joints = stack.joints_3d[i, slot]
        expected = true.joints_3d if true.labelled else np.full((21, 3), np.nan)
        np.testing.assert_allclose(joints, expected, atol=1e-6)
        for o, ycb_id in enumerate(true.plan.ycb_ids):
            assert source.objects[ycb_id - 1].name == true.plan.object_names[o]
            pose = true.T_cam_from_obj[o, :3] if true.posed[o] else np.full((3, 4), np.nan)
            np.testing.assert_allclose(stack.object_pose[i, o], pose, atol=1e-6)
        if true.labelled:
            np.testing.assert_allclose(stack.theta[i, slot], true.theta, atol=1e-5)
            np.testing.assert_allclose(stack.beta_raw[i, slot], true.beta, atol=1e-6)


def test_the_grasped_object_is_touched_in_the_last_frame_with_the_hand(root: Path) -> None:
    for plan in plans(SEED, NUM)[1:3]:
        frame = int(np.flatnonzero(plan.labelled())[-1])
        true = truth_of(SEED, NUM, plan, SERIALS[6], frame)
        assert true.grasped
        mesh = stand_in_object(plan.object_names[plan.grasp_ind])
        pose = true.T_cam_from_obj[plan.grasp_ind]
        placed = [pose[:3, :3] @ vertex + pose[:3, 3] for vertex in mesh.vertices]
        body = trimesh.Trimesh(placed, mesh.faces, process=False)
        far = true.contact_m()
        some = np.argsort(np.abs(far))[:40]
        near, distance, face = trimesh.proximity.closest_point_naive(  # type: ignore[no-untyped-call]  # as it ships
            body, true.vertices[some]
        )
        inside = ((true.vertices[some] - near) * body.face_normals[face]).sum(1) < 0
        np.testing.assert_allclose(far[some], np.where(inside, -distance, distance), atol=1e-8)
        assert distance.min() < 1e-3
        assert far.min() > -2e-3


def test_truth_names_images_that_are_not_there() -> None:
    plan = plans(SEED, NUM)[0]
    with pytest.raises(ValueError, match=r"have no image 'x/y/z/color_000000\.jpg'"):
        truth(SEED, NUM, "x/y/z/color_000000.jpg")
    with pytest.raises(ValueError, match="color_000099"):
        truth(SEED, NUM, f"{plan.folder}/{SERIALS[0]}/color_000099.jpg")


# --- plan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 8, 30, 64, 100, 200, 400, 4000, 60_000])
def test_plans_fill_every_number_of_images(num: int) -> None:
    found = plans(1, num)
    assert 8 * sum(plan.num_frames for plan in found) == 8 * -(-num // 8)
    assert len({plan.folder for plan in found}) == len(found)
    by_subject: dict[str, list[GraspPlan]] = defaultdict(list)
    for plan in found:
        by_subject[plan.subject].append(plan)
        assert plan.num_frames >= 1
        assert 19 not in plan.ycb_ids
        assert list(plan.ycb_ids) == sorted(set(plan.ycb_ids))
        assert 2 <= len(plan.ycb_ids) <= 4
        assert plan.labelled().any()
    if num >= 64:
        assert len(by_subject) >= 2
        for own in by_subject.values():
            assert len(own) >= 2
            assert {plan.side for plan in own} == {"right", "left"}
    if num >= 200:
        assert min(len(own) for own in by_subject.values()) >= 5
    if num == 60_000:
        assert len(by_subject) == 10
        names = sorted(plan.name for plan in found if plan.subject == found[0].subject)
        assert all(
            len(name) == 15 and int(name[9:11]) < 24 and int(name[11:13]) < 60 for name in names
        )


def test_seeds_differ_and_arrays_do_not_depend_on_the_order(root: Path) -> None:
    assert shape(1) != shape(2)
    plan = plans(SEED, NUM)[1]
    again = pose_arrays(SEED, NUM, plan)
    with np.load(root / plan.folder / "pose.npz") as file:
        for key, value in again.items():
            np.testing.assert_array_equal(file[key], value)
    true = truth_of(SEED, NUM, plan, SERIALS[5], 1)
    with np.load(root / plan.folder / SERIALS[5] / "labels_000001.npz") as file:
        for key, value in label_of(true, blank()).items():
            np.testing.assert_array_equal(file[key], value)


def shape(seed: int) -> list[tuple[int, ...]]:
    return [plan.ycb_ids for plan in plans(seed, 200)]


def test_tasks_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    job = partial(dexycb._write_task, tmp_path, SEED, NUM)
    assert pickle.loads(pickle.dumps(job)).args == job.args  # noqa: S301
