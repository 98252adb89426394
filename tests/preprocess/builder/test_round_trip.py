"""Stores of the rendered DexYCB and HO-3D against what their generators drew.

Hands are decoded with smplx, pixels with the scalar formula; the generators' truth never passes
through the readers.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from model.hand import LEFT, RIGHT
from model.mano.files import load_mano
from pipeline.store.objects import ObjectShape
from pipeline.store.pictures import read_picture
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import CONTACT_FAR, FLAGS
from preprocess.builder.build import build
from preprocess.builder.verify import verify
from preprocess.config import BuildConfig, ImageConfig, Region, VerifyConfig
from preprocess.objects.shapes import make_shape
from preprocess.records import ObjectFile
from preprocess.sample.dexycb.scene import Truth, truth
from preprocess.sample.generate import write_sample
from preprocess.sample.hand.mesh import write_mano
from preprocess.sample.ho3d import write as ho3d
from preprocess.sample.ho3d.scene import ImageTruth, Slot, draw_frame, slot_of
from tests.preprocess.datasets import decode

QUIET = Console(quiet=True)
SEED, NUM = 1, 64
NUM_HO3D, NUM_HO3D_EVAL = 12, 3
METRES, PIXELS = 1e-4, 0.05


def pixels_of(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    return np.array([(K @ p)[:2] / p[2] for p in points])


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return np.asarray(image)


def affine(A: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels @ A[:, :2].T + A[:, 2])


# --- DexYCB ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def shapes_once() -> Iterator[None]:
    """Make the shape of a mesh once for all builds here; two seconds each."""
    made: dict[str, ObjectShape] = {}

    def once(file: ObjectFile, root: Path) -> ObjectShape:
        if file.name not in made:
            made[file.name] = make_shape(file, root)
        return made[file.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.objects.shapes.make_shape", once)
        yield


@pytest.fixture(scope="module")
def dexycb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dexycb") / "dexycb"
    write_sample("dexycb", root, NUM, SEED, workers=1)
    return root


@pytest.fixture(scope="module")
def store(dexycb: Path) -> Store:
    return built(dexycb, "store.zarr", depth=True, segmentation=True)


def built(root: Path, name: str, *, dataset: str = "dexycb", **options: object) -> Store:
    out = root.parent / name
    config = BuildConfig(
        dataset=dataset, root=str(root), out=str(out), mano=str(root / "mano"), shard_rows=20,
        workers=1,
    )  # fmt: skip
    return open_store(build(dataclasses.replace(config, **options), console=QUIET).path)  # type: ignore[arg-type]


def image_of(store: Store, row: int) -> str:
    tables = store.attributes.tables
    sequence, camera = (
        tables[name][store.label(f"{name}_idx")[row]] for name in ("sequence", "camera")
    )
    return f"{sequence}/{camera}/color_{store.label('frame_idx')[row]:06d}.jpg"


def rows_of(store: Store) -> list[tuple[int, int, Truth]]:
    """Row, hand slot and truth of every image."""
    found = []
    for row in range(store.num_rows):
        true = truth(SEED, NUM, image_of(store, row))
        found.append((row, LEFT if true.plan.side == "left" else RIGHT, true))
    return found


def test_the_sample_has_both_hands_and_frames_without(store: Store) -> None:
    kinds = {(slot, true.labelled) for _, slot, true in rows_of(store)}
    assert kinds == {(RIGHT, True), (RIGHT, False), (LEFT, True), (LEFT, False)}


def test_cameras_of_dexycb_survive(store: Store) -> None:
    for row, _, true in rows_of(store):
        np.testing.assert_allclose(store.label("K")[row], true.K, atol=PIXELS / 10)
        T = store.label("T_world_from_cam")[row]
        np.testing.assert_allclose(T, true.T_world_from_cam, atol=METRES)
    assert store.label("has_world").all()


def test_hands_of_dexycb_survive(store: Store, dexycb: Path) -> None:
    models = load_mano(dexycb / "mano")
    for row, slot, true in rows_of(store):
        assert store.label("has_joints")[row].any() == true.labelled
        if not true.labelled:
            assert np.isnan(store.label("theta")[row]).all()
            continue
        joints = store.label("joints_3d")[row, slot]
        assert np.abs(joints - true.joints_3d).max() < METRES
        seen = pixels_of(joints.astype(np.float64), store.label("K")[row].astype(np.float64))
        assert np.abs(seen - pixels_of(true.joints_3d, true.K)).max() < PIXELS
        theta, beta_raw, transl, rest = (
            store.label(name)[row, slot].astype(np.float64)
            for name in ("theta", "beta_raw", "transl", "root_rest")
        )
        assert beta_raw.tolist() == true.beta.astype(np.float32).tolist()
        # The wrist stays in a refit, so the shipped model's translation follows from its rest.
        arrays = models.left_as_shipped if slot == LEFT else models.right
        shipped = decode(dataclasses.asdict(arrays), theta, beta_raw) + transl + rest
        shipped -= true.root_rest
        assert np.linalg.norm(shipped - true.vertices, axis=1).max() < METRES


def test_refitted_left_hands_say_how_far_they_are_off(store: Store, dexycb: Path) -> None:
    """In the pose of the row; over 1 mm there is no beta, and the report names the worst."""
    models = load_mano(dexycb / "mano")
    worst = 0.0
    for row, slot, true in rows_of(store):
        if not true.labelled:
            continue
        flagged = bool(store.label("quality")[row] & FLAGS["left_refit"])
        assert store.label("has_beta")[row, slot] == (not flagged)
        if slot == RIGHT:
            assert not flagged
            np.testing.assert_array_equal(
                store.label("beta")[row, slot], store.label("beta_raw")[row, slot]
            )
            continue
        beta = fixed_beta(models.left_as_shipped, models.left, true.beta)
        theta = true.theta
        fixed = decode(dataclasses.asdict(models.left), theta, beta)
        rest = models.left.J_regressor[0] @ (models.left.v_template + models.left.shapedirs @ beta)
        off = np.linalg.norm(
            fixed - rest - (true.vertices - true.transl - true.root_rest), axis=1
        ).max()
        assert flagged == (off > 1e-3)
        worst = max(worst, off)
    assert store.attributes.extra["left_refit_max_m"] == pytest.approx(worst, abs=1e-5)
    assert worst > 1e-3


def fixed_beta(shipped: object, fixed: object, beta: np.ndarray) -> np.ndarray:
    """Least squares on the rest vertices about the rest wrist, written out."""

    def about_wrist(arrays: object, b: np.ndarray) -> np.ndarray:
        rest = arrays.v_template + arrays.shapedirs @ b  # type: ignore[attr-defined]
        moved: np.ndarray = (rest - arrays.J_regressor[0] @ rest).ravel()  # type: ignore[attr-defined]
        return moved

    zero = about_wrist(fixed, np.zeros(10))
    basis = np.stack([about_wrist(fixed, e) - zero for e in np.eye(10)], axis=1)
    solved: np.ndarray = np.linalg.lstsq(basis, about_wrist(shipped, beta) - zero, rcond=None)[0]
    return solved


def test_objects_of_dexycb_survive(store: Store) -> None:
    names = store.attributes.tables["object"]
    first: dict[tuple[str, str, int], np.ndarray] = {}
    for row, _, true in rows_of(store):
        ids = store.label("object_id")[row]
        num = len(true.plan.object_names)
        assert [names[i] for i in ids[:num]] == list(true.plan.object_names)
        assert (ids[num:] == -1).all()
        assert store.label("has_object")[row].tolist() == [*true.posed, *[False] * (10 - num)]
        assert store.label("grasped_object")[row] == true.plan.grasp_ind
        for slot in range(num):
            pose = store.label("object_pose")[row, slot]
            if not true.posed[slot]:
                assert np.isnan(pose).all()
                continue
            np.testing.assert_allclose(pose, true.T_cam_from_obj[slot, :3], atol=METRES)
            place = (true.T_world_from_cam @ true.T_cam_from_obj[slot])[:3, 3]
            start = first.setdefault((true.plan.folder, true.serial, slot), place)
            moved = store.label("object_moved_m")[row, slot]
            assert moved == pytest.approx(np.linalg.norm(place - start), abs=2 * METRES)
    assert store.label("object_moved_m")[store.label("has_object")].max() > 0.02


def test_contact_of_dexycb_survives(store: Store) -> None:
    """Within a step of the distance to the mesh that the generator closed its fingers on."""
    touching = 0
    for row, slot, true in rows_of(store):
        if not (true.labelled and true.posed[true.plan.grasp_ind]):
            continue
        assert store.label("contact_object")[row, slot] == true.plan.grasp_ind
        distance = np.maximum(true.contact_m(), 0.0)
        found = store.label("contact_dist")[row, slot].astype(np.float64) * 0.25e-3
        near = distance < 254 * 0.25e-3 - METRES
        assert (found[near] - distance[near] < 0.25e-3 + METRES).all()
        assert (distance[near] - found[near] < METRES).all()
        far = distance > 254 * 0.25e-3 + METRES
        assert (store.label("contact_dist")[row, slot][far] == CONTACT_FAR).all()
        if true.grasped:
            assert store.label("in_contact")[row, slot]
            touching += 1
    assert touching >= 8


def test_pictures_of_dexycb_survive(store: Store, dexycb: Path) -> None:
    for row in range(0, store.num_rows, 5):
        image = dexycb / image_of(store, row)
        number = image.stem.removeprefix("color_")
        depth = read(image.with_name(f"aligned_depth_to_color_{number}.png"))
        np.testing.assert_array_equal(read_picture(store.path, "depth_mm", row), depth)
        true = truth(SEED, NUM, image_of(store, row))
        seg = np.load(image.with_name(f"labels_{number}.npz"))["seg"]
        found = read_picture(store.path, "segmentation", row)
        for slot, ycb_id in enumerate(true.plan.ycb_ids):
            np.testing.assert_array_equal(found == 1 + slot, seg == ycb_id)
        hand = 254 if true.plan.side == "left" else 255
        np.testing.assert_array_equal(found == hand, seg == 255)


def test_a_sound_store_verifies_against_dexycb(store: Store, dexycb: Path) -> None:
    config = VerifyConfig(store=str(store.path), root=str(dexycb), mano=str(dexycb / "mano"))
    assert verify(config, console=QUIET).problems == []


def test_recoded_images_and_labels_move_together(dexycb: Path) -> None:
    image = ImageConfig(region=Region.hand_object, max_px=256)
    store = built(dexycb, "recoded.zarr", image=image)
    assert store.attributes.image_encoding == "recode"
    assert store.image_index.size_hw.max() <= 256
    cropped = 0
    for row, slot, true in rows_of(store):
        A = store.label("A_stored_from_raw")[row].astype(np.float64)
        K = store.label("K")[row].astype(np.float64)
        np.testing.assert_allclose(K[:2], A[:, :2] @ true.K[:2] + A[:, 2:] * [0, 0, 1], atol=1e-3)
        jpeg = cv2.imdecode(store.jpeg_checked(row), cv2.IMREAD_COLOR)
        assert jpeg is not None
        raw = read(dexycb / image_of(store, row))
        h, w = jpeg.shape[:2]
        assert [h, w] == store.image_index.size_hw[row].tolist()
        # What the stored pixels show is what the affine says, but for shrinking and coding.
        smooth = cv2.GaussianBlur(raw, (0, 0), 0.5 / A[0, 0])
        expected = cv2.warpAffine(smooth, A, (w, h), flags=cv2.INTER_LINEAR)
        assert np.abs(expected.astype(float) - jpeg).mean() < 4.0
        if true.labelled:
            joints = store.label("joints_3d")[row, slot].astype(np.float64)
            seen = pixels_of(joints, K)
            where = affine(A, pixels_of(true.joints_3d, true.K))
            assert np.abs(seen - where).max() < PIXELS
            box = store.label("bbox_xyxy")[row, slot]
            np.testing.assert_allclose(box[:2], where.min(0), atol=PIXELS)
            np.testing.assert_allclose(box[2:], where.max(0), atol=PIXELS)
            inside = (where > -1).all(1) & (where < [w, h]).all(1)
            outside_raw = (pixels_of(true.joints_3d, true.K) < 0).any()
            assert inside.all() or outside_raw or max(h, w) == 256
            cropped += int(h * w < 480 * 640)
    assert cropped > 10


# --- HO-3D ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["v3", "v2"])
def ho3d_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Path]:
    root = tmp_path_factory.mktemp(request.param) / f"HO3D_{request.param}"
    ho3d.write(root, NUM_HO3D, SEED, NUM_HO3D_EVAL, 1, None, version=request.param)
    write_mano(root / "mano")
    return built(root, "ho3d.zarr", dataset="ho3d", depth=True), root


def ho3d_rows(store: Store) -> list[tuple[int, Slot, ImageTruth]]:
    slots = [slot_of("train", i) for i in range(NUM_HO3D)]
    slots += [slot_of("evaluation", i) for i in range(NUM_HO3D_EVAL)]
    by_place = {(f"{s.part}/{s.sequence}", int(s.stem)): s for s in slots}
    found = []
    for row in range(store.num_rows):
        sequence = store.attributes.tables["sequence"][store.label("sequence_idx")[row]]
        slot = by_place[sequence, int(store.label("frame_idx")[row])]
        found.append((row, slot, draw_frame(SEED, slot)))
    return found


def test_ho3d_survives(ho3d_store: tuple[Store, Path]) -> None:
    store, root = ho3d_store
    arrays = dataclasses.asdict(load_mano(root / "mano").right)
    rows = ho3d_rows(store)
    assert len(rows) == NUM_HO3D + NUM_HO3D_EVAL
    with_mano = 0
    for row, slot, true in rows:
        if slot.is_unannotated:
            assert store.label("quality")[row] & FLAGS["no_label"]
            continue
        K = store.label("K")[row].astype(np.float64)
        np.testing.assert_allclose(K, true.K, atol=PIXELS / 10)
        joints = store.label("joints_3d")[row, RIGHT].astype(np.float64)
        assert np.abs(joints - true.joints_3d).max() < METRES
        assert np.abs(pixels_of(joints, K) - pixels_of(true.joints_3d, true.K)).max() < PIXELS
        assert not store.label("has_joints")[row, LEFT]
        if slot.part == "train":
            theta, beta, transl = (
                store.label(name)[row, RIGHT].astype(np.float64)
                for name in ("theta", "beta", "transl")
            )
            vertices = decode(arrays, theta, beta) + transl
            assert np.linalg.norm(vertices - true.vertices, axis=1).max() < METRES
            assert beta.tolist() == true.beta.astype(np.float32).tolist()
            np.testing.assert_array_equal(
                store.label("beta")[row, RIGHT], store.label("beta_raw")[row, RIGHT]
            )
            with_mano += 1
        name = store.attributes.tables["object"][store.label("object_id")[row, 0]]
        assert name == slot.object_name
        if slot.lacks_object:
            assert store.label("quality")[row] & FLAGS["object_missing"]
        else:
            pose = store.label("object_pose")[row, 0]
            np.testing.assert_allclose(pose, true.T_cam_from_obj[:3], atol=METRES)
    assert with_mano >= 8


def test_depth_of_ho3d_is_millimetres(ho3d_store: tuple[Store, Path]) -> None:
    store, root = ho3d_store
    row, slot, _ = ho3d_rows(store)[0]
    file = root / slot.part / slot.sequence / "depth" / f"{slot.stem}.png"
    bgr = read(file).astype(np.int64)
    metres = (bgr[..., 2] + 256 * bgr[..., 1]) * 0.00012498664727900177
    found = read_picture(store.path, "depth_mm", row).astype(np.float64)
    assert np.abs(found - 1000 * metres).max() <= 0.5 + 1e-6


def test_pngs_are_recoded_and_jpegs_kept(ho3d_store: tuple[Store, Path]) -> None:
    store, root = ho3d_store
    is_v2 = root.name.endswith("v2")
    assert store.attributes.image_encoding == ("recode" if is_v2 else "passthrough")
    row, slot, _ = ho3d_rows(store)[0]
    file = next((root / slot.part / slot.sequence / "rgb").glob(f"{slot.stem}.*"))
    if is_v2:
        stored = cv2.imdecode(store.jpeg_checked(row), cv2.IMREAD_COLOR)
        assert stored is not None
        again = cv2.imencode(".jpg", read(file), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        expected = cv2.imdecode(again, cv2.IMREAD_COLOR)
        assert expected is not None
        lost, usual = (np.abs(image.astype(float) - read(file)) for image in (stored, expected))
        assert lost.mean() < 1.1 * usual.mean()
    else:
        assert store.jpeg_checked(row).tobytes() == file.read_bytes()
    config = VerifyConfig(store=str(store.path), root=str(root), mano=str(root / "mano"))
    assert verify(config, console=QUIET).problems == []
