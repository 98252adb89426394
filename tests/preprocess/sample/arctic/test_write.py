"""The rendered ARCTIC sample: its files, its images, and its store against the ground truth."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from pipeline.store.reader import Store, open_store
from preprocess.builder.verify import verify
from preprocess.config import VerifyConfig
from preprocess.sample.arctic.objects import RECIPES, stand_in_parts, turned
from preprocess.sample.arctic.scene import (
    BLACK,
    BORDER,
    DIST8,
    LAST_MISSING,
    OFFSETS,
    VIEWS,
    SequencePlan,
    image_path,
    plans,
    scene_of,
    truth_of,
)
from preprocess.sample.arctic.write import BASE, HANDS, LID, draw
from tests.conftest import SampleStore

SEED, NUM = 3, 54
METRES, PIXELS = 1e-4, 0.05


@pytest.fixture(scope="module")
def sample(arctic: SampleStore) -> Path:
    return arctic.root


@pytest.fixture(scope="module")
def store(arctic: SampleStore) -> Store:
    return open_store(arctic.store)


def plan_of(name: str) -> SequencePlan:
    return next(plan for plan in plans(SEED, NUM) if plan.folder == name)


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(image)


# --- files ----------------------------------------------------------------------------------------


def test_every_captured_frame_has_its_file_and_the_ends_are_black(sample: Path) -> None:
    for plan in plans(SEED, NUM):
        for view in range(VIEWS):
            files = sorted((sample / "images" / plan.folder / str(view)).iterdir())
            num = plan.num_frames - LAST_MISSING * plan.cut_short
            assert [int(file.stem) - OFFSETS[plan.subject] for file in files] == list(range(num))
        assert read(files[BLACK[0] - 1]).max() < 10
        assert read(files[BLACK[0]]).max() > 100
    subjects = {plan.subject for plan in plans(SEED, NUM)}
    assert {"s01", "s03", "s05"} <= subjects
    assert not (sample / "raw_seqs" / "s03").exists()


def test_files_have_the_official_form(sample: Path) -> None:
    for plan in plans(SEED, NUM):
        if plan.hidden:
            continue
        stem, num = str(sample / "raw_seqs" / plan.folder), plan.num_frames
        parameters = np.load(f"{stem}.object.npy")
        assert (parameters.shape, parameters.dtype) == ((num, 7), np.float32)
        assert 50 < np.abs(parameters[:, 4:]).max() < 1000  # millimetres
        mano = np.load(f"{stem}.mano.npy", allow_pickle=True).item()
        for side in ("right", "left"):
            shapes = {key: np.shape(mano[side][key]) for key in ("rot", "pose", "trans", "shape")}
            assert shapes == {"rot": (num, 3), "pose": (num, 45), "trans": (num, 3), "shape": (10,)}
            assert np.abs(mano[side]["trans"]).max() < 2  # metres
            assert len(mano[side]["fitting_err"]) == num
        egocam = np.load(f"{stem}.egocam.dist.npy", allow_pickle=True).item()
        assert egocam["R_k_cam_np"].shape == (num, 3, 3)
        assert egocam["T_k_cam_np"].shape == (num, 3, 1)
        assert np.shape(egocam["dist8"]) == (8,)
        body = np.load(f"{stem}.smplx.npy", allow_pickle=True).item()
        assert body["body_pose"].shape == (num, 63)
    misc = json.loads((sample / "meta" / "misc.json").read_text())
    for entry in misc.values():
        assert np.shape(entry["world2cam"]) == (8, 4, 4)
        assert np.shape(entry["image_size"]) == (9, 2)


def test_motion_is_smooth(sample: Path) -> None:
    """No point of hand or object moves by more than 4 cm from frame to frame, nor jerks."""
    for plan in plans(SEED, NUM):
        scene = scene_of(SEED, plan)
        for track in (scene.joints[0], scene.joints[1], scene.T_world_from_obj[:, None, :3, 3]):
            step = np.diff(track, axis=0)
            assert np.linalg.norm(step, axis=-1).max() < 0.04
            assert np.linalg.norm(np.diff(step, axis=0), axis=-1).max() < 0.02


def test_use_moves_the_lid_and_grab_does_not() -> None:
    for plan in plans(SEED, 4000):
        spread = np.ptp(scene_of(SEED, plan).arti_rad)
        assert (spread > 0.1) == ("_use_" in plan.name) or plan.num_frames < 40, plan


def test_hands_touch_and_let_go_of_the_base() -> None:
    plan = max(plans(SEED, 4000), key=lambda p: p.num_frames)
    scene = scene_of(SEED, plan)
    _, base = stand_in_parts(plan.object_name)
    low, high = base.vertices.min(0), base.vertices.max(0)
    gaps = []
    for frame in range(plan.num_frames):
        T = scene.T_world_from_obj[frame]
        own = (scene.vertices[:, frame] - T[:3, 3]) @ T[:3, :3]
        off = np.maximum(np.maximum(low - own, own - high), 0)
        gaps.append(np.linalg.norm(off, axis=-1).min(-1))
        inside = ((own > low) & (own < high)).all(-1)
        assert not inside.any()
    touches = np.array(gaps) < 0.003
    assert 0.3 < touches.mean() < 0.95
    assert touches.any(0).all()
    assert (~touches).any(0).all()


def test_the_lid_is_the_part_that_turns(sample: Path) -> None:
    for name in RECIPES:
        folder = sample / "meta" / "object_vtemplates" / name
        lines = (folder / "mesh.obj").read_text().splitlines()
        points = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
        part = np.array(json.loads((folder / "parts.json").read_text()))
        lid, base = stand_in_parts(name)
        np.testing.assert_allclose(points[part == 0], 1000 * lid.vertices, atol=1e-5)
        np.testing.assert_allclose(points[part == 1], 1000 * base.vertices, atol=1e-5)
        assert turned(lid.vertices, 0.5)[:, 1].max() > lid.vertices[:, 1].max()  # it opens


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [0, 1, 3])
def test_labels_lie_on_what_is_drawn(view: int) -> None:
    """Projected by cv2, with the distortion in view 0, points fall on their own body."""
    plan = plan_of("s01/box_use_01")
    frame = BORDER + 1
    true = truth_of(SEED, plan, view, frame)
    _, labels = draw(SEED, plan, view, frame)
    around = cv2.dilate((labels > 0).astype(np.uint8), np.ones((3, 3)))  # within a pixel
    dist = DIST8 if view == 0 else np.zeros(8)

    def shown(points: np.ndarray, picture: np.ndarray) -> np.ndarray:
        pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), true.K, dist)[0][:, 0]
        u, v = np.round(pixels).astype(int).T
        inside = (u >= 0) & (v >= 0) & (v < labels.shape[0]) & (u < labels.shape[1])
        return np.asarray(picture[v[inside], u[inside]])

    for label, points in (
        (HANDS[0], true.vertices[0]), (HANDS[1], true.vertices[1]),
        (LID, true.lid), (BASE, true.base),
    ):  # fmt: skip
        assert shown(points, around).mean() > 0.99, label
        seen = shown(points, labels)
        assert (seen == label).mean() > 0.15 or label == BASE, label
        assert (labels == label).sum() > 100


def test_the_picture_of_the_head_is_bent() -> None:
    """Without the distortion the corner of the lid is elsewhere."""
    plan = plan_of("s01/box_use_01")
    true = truth_of(SEED, plan, 0, BORDER)
    bent, straight = (
        cv2.projectPoints(true.lid, np.zeros(3), np.zeros(3), true.K, d)[0][:, 0]
        for d in (DIST8, np.zeros(8))
    )
    assert np.linalg.norm(bent - straight, axis=-1).max() > 1.0


# --- a store --------------------------------------------------------------------------------------


def rows_of(store: Store) -> list[tuple[int, SequencePlan, int, int]]:
    """Row, plan, view and captured frame of every image with labels."""
    tables, found = store.attributes.tables, []
    for row in range(store.num_rows):
        plan = plan_of(tables["sequence"][store.label("sequence_idx")[row]])
        view = int(tables["camera"][store.label("camera_idx")[row]])
        if not plan.hidden:
            frame = int(store.label("frame_idx")[row]) - OFFSETS[plan.subject]
            found.append((row, plan, view, frame))
    return found


def test_a_store_holds_what_was_drawn(store: Store) -> None:
    assert store.num_rows == NUM + 3 * VIEWS
    for row, plan, view, frame in rows_of(store):
        true = truth_of(SEED, plan, view, frame)
        K = store.label("K")[row].astype(np.float64)
        np.testing.assert_allclose(K, true.K, atol=PIXELS / 10)
        T = store.label("T_world_from_cam")[row]
        np.testing.assert_allclose(T, np.linalg.inv(true.T_cam_from_world), atol=METRES)
        joints = store.label("joints_3d")[row].astype(np.float64)
        assert np.abs(joints - true.joints_3d).max() < METRES
        pixels = [(p @ K.T)[..., :2] / p[..., 2:] for p in (joints, true.joints_3d)]
        assert np.abs(pixels[0] - pixels[1]).max() < PIXELS
        np.testing.assert_allclose(store.label("beta_raw")[row], true.beta, rtol=1e-6)
        pose = store.label("object_pose")[row, 0].astype(np.float64)
        angle = float(store.label("object_arti_rad")[row, 0])
        assert angle == pytest.approx(true.arti_rad, abs=1e-6)
        lid, base = (mesh.vertices for mesh in stand_in_parts(plan.object_name))
        for points, expected in ((turned(lid, angle), true.lid), (base, true.base)):
            assert np.abs(points @ pose[:, :3].T + pose[:, 3] - expected).max() < METRES
    assert store.label("has_contact")[[row for row, *_ in rows_of(store)]].all()


def test_images_of_the_head_are_straight_in_a_store(store: Store, sample: Path) -> None:
    row, plan, view, frame = next(found for found in rows_of(store) if found[2] == 0)
    raw = read(sample / image_path(plan, view, frame))
    true = truth_of(SEED, plan, view, frame)
    stored = cv2.imdecode(np.frombuffer(store.jpeg(row), np.uint8), cv2.IMREAD_COLOR)
    assert stored is not None
    expected = cv2.undistort(raw, true.K, DIST8)
    assert np.abs(stored.astype(int) - expected).mean() < 3.0
    assert np.abs(stored.astype(int) - raw).mean() > 5.0


def test_a_sound_store_verifies_against_its_files(store: Store, sample: Path) -> None:
    report = verify(
        VerifyConfig(store=str(store.path), root=str(sample), mano=str(sample / "mano")),
        console=Console(quiet=True),
    )
    assert not report.problems


def test_a_camera_that_looks_past_them_counts_neither_the_object_nor_the_left_hand(
    store: Store,
) -> None:
    valid = store.label("official_valid")
    past = [row for row, plan, view, _ in rows_of(store) if plan.subject == "s05" and view == 5]
    at_them = [row for row, plan, view, _ in rows_of(store) if plan.subject == "s01" and view == 5]
    assert past
    assert at_them
    assert not valid[past][:, 1:].any()
    assert valid[at_them].all()
