from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from model.geometry.crop import apply
from pipeline.app.cli import compose
from pipeline.config import (
    AugmentConfig,
    CacheConfig,
    PipelineConfig,
    PlanConfig,
    ViewConfig,
    ViewKind,
)
from pipeline.labels.table import load_labels
from pipeline.loader import Loader
from pipeline.memory import main as plan
from pipeline.store.errors import StoreError
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import FLAGS
from pipeline.view import build_view, samples_at, split_rows
from tests.pipeline.hand_store import HEIGHT, WIDTH, frame, hand_store, has_hand, jpeg

ROWS = np.arange(12)
HANDS = [2 * row + slot for row in range(12) for slot in range(2) if has_hand(row, slot)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(hand_store(tmp_path_factory.mktemp("view") / "s.zarr", unreadable=(5,)))


def test_a_hand_is_a_sample(store: Store) -> None:
    view = build_view(store, ROWS, ViewConfig(), 64, training=True)
    assert view.sample_id.tolist() == [i for i in HANDS if i // 2 != 5]
    assert torch.equal(view.row, view.sample_id // 2)
    assert len(view) == len(view.row)


def test_hand_square_is_the_padded_box(store: Store) -> None:
    config = ViewConfig(pad=1.6, margin=1.3)
    view = build_view(store, ROWS, config, 64, training=True)
    for k in range(len(view)):
        x0, y0, x1, y1 = store.label("bbox_xyxy")[view.row[k], view.sample_id[k] % 2].tolist()
        assert view.center_px[k].tolist() == [(x0 + x1) / 2, (y0 + y1) / 2]
        side = max(x1 - x0, y1 - y0) * 1.6
        assert view.size_px[k].item() == pytest.approx(side, rel=1e-12)
        # the cached square is 1.3 as large about the same centre; corners are outer pixel edges
        edge = 1.3 * side / 2
        corners = view.center_px[k] + torch.tensor([[-edge], [edge]], dtype=torch.float64)
        expected = [[-0.5, -0.5], [63.5, 63.5]]
        np.testing.assert_allclose(apply(view.A_cache_from_frame[k], corners), expected, atol=1e-9)


def test_frame_view_is_the_letterboxed_frame(store: Store) -> None:
    config = ViewConfig(kind=ViewKind.frame, margin=1.3)
    view = build_view(store, ROWS, config, 64, training=True)
    assert view.sample_id.tolist() == [2 * row for row in range(12) if row != 5]
    assert view.size_px.tolist() == [float(WIDTH)] * 11
    # outer edges of the frame: left and right fill the square, above and below leave bars
    edges = torch.tensor([[-0.5, -0.5], [WIDTH - 0.5, HEIGHT - 0.5]]).double()
    bar = (WIDTH - HEIGHT) / 2 * 64 / WIDTH
    expected = [[-0.5, bar - 0.5], [63.5, 63.5 - bar]]
    np.testing.assert_allclose(apply(view.A_cache_from_frame[0], edges), expected, atol=1e-9)


def test_the_split_keeps_its_order(store: Store) -> None:
    rows = split_rows(store, "val", 1.0)
    view = build_view(store, rows, ViewConfig(kind=ViewKind.frame), 64, training=False)
    assert view.row.tolist() == [11, 9, 7, 3, 1]


def test_subset_is_evenly_spaced(store: Store) -> None:
    assert split_rows(store, "train", 0.25).tolist() == [2, 6, 10]
    assert split_rows(store, "train", 1e-6).tolist() == [6]
    with pytest.raises(StoreError, match="no split 'test'; choices: all"):
        split_rows(store, "test", 1.0)


def test_flags_and_joints_are_left_out_by_choice(tmp_path: Path) -> None:
    flagged = hand_store(
        tmp_path / "s.zarr", 6, quality=FLAGS["behind_camera"], has_joints=[True, False]
    )
    store = open_store(flagged)
    strict = ViewConfig(exclude_flags=["behind_camera", "no_mano"])
    with pytest.raises(ValueError, match=r"none of 12 samples is left: 0 with .*, 12 with an exc"):
        build_view(store, ROWS[:6], strict, 64, training=True)
    kept = build_view(store, ROWS[:6], strict, 64, training=False)
    assert len(kept) == len([i for i in HANDS if i < 12])
    mild = ViewConfig(exclude_flags=["outside_image"], require_joints=True)
    kept = build_view(store, ROWS[:6], mild, 64, training=True)
    assert kept.sample_id.tolist() == [0, 2, 4, 8, 10]


def test_images_of_one_colour_are_not_trained_on(tmp_path: Path) -> None:
    store = open_store(hand_store(tmp_path / "s.zarr", 6, quality=FLAGS["flat_image"]))
    with pytest.raises(ValueError, match="with an excluded flag"):
        build_view(store, ROWS[:6], ViewConfig(), 64, training=True)
    assert len(build_view(store, ROWS[:6], ViewConfig(exclude_flags=[]), 64, training=True))
    assert len(build_view(store, ROWS[:6], ViewConfig(), 64, training=False))


def test_a_sample_of_a_table(store: Store) -> None:
    view = build_view(store, ROWS, ViewConfig(), 64, training=True)
    some = samples_at(view, torch.tensor([3, 0]))
    assert some.sample_id.tolist() == [int(view.sample_id[3]), int(view.sample_id[0])]
    assert torch.equal(some.A_cache_from_frame[1], view.A_cache_from_frame[0])


# --- hands and the object they act on -------------------------------------------------------------

HAND_OBJECT = ViewConfig(kind=ViewKind.hand_object, pad=1.4, margin=1.2)
NUM_SCENES = 64


def scene(row: int, values: dict[str, Any]) -> None:
    """Hands, up to ten objects, grasp and contact at random; half of the objects without a box.

    An object with a box has a pose, and so have some without; contact is with one that has.
    """
    rng = np.random.default_rng([row, 9])
    low = rng.uniform(0, 60, (12, 2))
    boxes = np.concatenate((low, low + rng.uniform(3, 40, (12, 2))), 1)
    has_box = rng.random(12) < [0.6, 0.6, *[0.5] * 10]
    if row % 8 == 0:
        has_box[2:] = False
    boxes[~has_box] = np.nan
    values["bbox_xyxy"], values["object_bbox_xyxy"] = boxes[:2], boxes[2:]
    values["has_joints"] = has_box[:2] & (rng.random(2) < 0.8)
    values["has_object"] = posed = has_box[2:] | (rng.random(10) < 0.2 * (row % 16 > 0))
    values["grasped_object"] = np.array(rng.integers(0, 10) if rng.random() < 0.5 else -1)
    values["has_contact"] = (rng.random(2) < 0.7) & posed.any()
    touched = rng.permutation(np.flatnonzero(posed))[[0, -1]] if posed.any() else -1
    values["contact_object"] = np.where(values["has_contact"], touched, -1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("scenes") / "s.zarr"
    return open_store(hand_store(path, NUM_SCENES, shard_rows=20, edit=scene, unreadable=(7,)))


def object_of_scene(store: Store, row: int) -> int | None:
    """The grasped one, else the right hand's, else the left hand's, else the first; if posed."""
    posed = [k for k in range(10) if store.label("has_object")[row, k]]
    wanted = [int(store.label("grasped_object")[row])]
    touched, is_known = store.label("contact_object")[row], store.label("has_contact")[row]
    wanted += [int(touched[slot]) for slot in (0, 1) if is_known[slot]]
    return next((k for k in [*wanted, *posed] if k in posed), None)


def box_of_scene(store: Store, row: int) -> list[float] | None:
    """The corners, by loops over what is in the row."""

    def known(box: Any) -> bool:
        return all(bool(np.isfinite(x)) for x in box)

    hands = store.label("bbox_xyxy")[row]
    objects = store.label("object_bbox_xyxy")[row]
    present = [slot for slot in (0, 1) if known(hands[slot])]
    k = object_of_scene(store, row)
    chosen = [] if k is None or not known(objects[k]) else [k]
    corners = [hands[slot] for slot in present] + [objects[k] for k in chosen]
    if not corners:
        return None
    x0, y0 = min(float(c[0]) for c in corners), min(float(c[1]) for c in corners)
    x1, y1 = max(float(c[2]) for c in corners), max(float(c[3]) for c in corners)
    return [x0, y0, x1, y1]


def test_a_scene_is_one_sample_around_hands_and_object(scenes: Store) -> None:
    view = build_view(scenes, np.arange(NUM_SCENES), HAND_OBJECT, 64, training=True)
    expected = {row: box for row in range(NUM_SCENES) if (box := box_of_scene(scenes, row))}
    del expected[7]
    assert len(expected) < NUM_SCENES - 1
    assert view.row.tolist() == list(expected)
    assert view.sample_id.tolist() == [2 * row for row in expected]
    for k, (x0, y0, x1, y1) in enumerate(expected.values()):
        assert view.center_px[k].tolist() == [(x0 + x1) / 2, (y0 + y1) / 2]
        side = 1.4 * max(x1 - x0, y1 - y0)
        assert view.size_px[k].item() == pytest.approx(side, rel=1e-12)
        edge = 1.2 * side / 2
        corners = view.center_px[k] + torch.tensor([[-edge], [edge]], dtype=torch.float64)
        expected_px = [[-0.5, -0.5], [63.5, 63.5]]
        found = apply(view.A_cache_from_frame[k], corners)
        np.testing.assert_allclose(found, expected_px, atol=1e-9)


def test_scenes_of_every_kind_were_drawn(scenes: Store) -> None:
    rows = np.arange(NUM_SCENES)
    grasped, posed = scenes.label("grasped_object"), scenes.label("has_object")
    has_box = np.isfinite(scenes.label("object_bbox_xyxy")).all(-1)
    is_hand = np.isfinite(scenes.label("bbox_xyxy")).all(-1)
    by_grasp = (grasped >= 0) & posed[rows, grasped]
    right, left = scenes.label("has_contact").T & ~by_grasp
    apart = right & left & (np.diff(scenes.label("contact_object"))[:, 0] != 0)
    unknown = ~by_grasp & ~right & ~left & (has_box.sum(1) > 1)
    acted_on = [object_of_scene(scenes, row) for row in range(NUM_SCENES)]
    boxless = np.array([k is not None and not has_box[i, k] for i, k in enumerate(acted_on)])
    boxless &= has_box.any(1)  # others have one
    kinds = (by_grasp, right, left & ~right, apart, unknown, boxless & is_hand.any(1))
    for kind in (*kinds, ~is_hand.any(1), ~posed.any(1)):
        assert kind.any()


def test_the_crop_surrounds_the_object_whose_pose_is_the_label(tmp_path: Path) -> None:
    """Two hands near different objects, nothing known, and a grasped object without a box."""

    def edit(row: int, values: dict[str, Any]) -> None:
        values["bbox_xyxy"] = np.array([[40, 40, 50, 50], [np.nan] * 4])
        values["object_id"] = np.arange(10)
        values["has_object"] = np.arange(10) < 3
        values["object_pose"] = np.tile(np.eye(3, 4), (10, 1, 1))
        values["object_pose"][:, 2, 3] = 1 + np.arange(10)  # metres away: which one it is
        box = values["object_bbox_xyxy"] = np.full((10, 4), np.nan)
        box[:3] = [[30, 40, 50, 60], [10, 10, 20, 20], [80, 60, 100, 70]]
        values["grasped_object"] = np.array(-1)
        values["has_contact"] = np.array([row == 0] * 2)
        values["contact_object"] = np.array([2, 1] if row == 0 else [-1, -1])
        if row == 2:
            values["grasped_object"], box[1] = np.array(1), np.nan

    store = open_store(hand_store(tmp_path / "s.zarr", 3, edit=edit))
    view = build_view(store, np.arange(3), ViewConfig(kind=ViewKind.hand_object), 64, training=True)
    labels = load_labels(store, view, ViewKind.hand_object)
    assert (labels.object_pose[:, 2, 3] - 1).tolist() == [2, 0, 1]
    expected = [[40, 40, 100, 70], [30, 40, 50, 60], [40, 40, 50, 50]]
    for k, (x0, y0, x1, y1) in enumerate(expected):
        assert view.center_px[k].tolist() == [(x0 + x1) / 2, (y0 + y1) / 2]
        assert view.size_px[k].item() == 1.5 * max(x1 - x0, y1 - y0)


def test_a_scene_without_a_hand_stays_unless_joints_are_required(scenes: Store) -> None:
    rows = np.arange(NUM_SCENES)
    strict = ViewConfig(kind=ViewKind.hand_object, require_joints=True)
    every = build_view(scenes, rows, HAND_OBJECT, 64, training=True).row.tolist()
    kept = build_view(scenes, rows, strict, 64, training=True).row.tolist()
    assert kept == [row for row in every if scenes.label("has_joints")[row].any()]
    bare = [row for row in every if not np.isfinite(scenes.label("bbox_xyxy")[row]).any()]
    assert bare
    with pytest.raises(ValueError, match=rf"none of {len(bare)} samples.*, {len(bare)} without jo"):
        build_view(scenes, np.array(bare), strict, 64, training=True)


def test_a_row_with_nothing_is_left_out_with_the_reason(scenes: Store) -> None:
    nothing = [row for row in range(NUM_SCENES) if box_of_scene(scenes, row) is None]
    with pytest.raises(ValueError, match=rf", {len(nothing)} without a box"):
        build_view(scenes, np.array(nothing), HAND_OBJECT, 64, training=True)


def test_a_loader_shows_the_scene_with_both_hands(tmp_path: Path) -> None:
    path = hand_store(tmp_path / "s.zarr", 8)
    config = PipelineConfig(
        store=str(path),
        batch_size=8,
        input_px=96,
        mean=[0, 0, 0],
        std=[1 / 255] * 3,
        view=HAND_OBJECT,
        cache=CacheConfig(size_px=112, decode_threads=1),
    )
    (batch,) = Loader(config, device=torch.device("cpu"), training=False)
    store = open_store(path)
    view = build_view(store, np.arange(8), HAND_OBJECT, 112, training=False)
    assert batch.sample_id.tolist() == view.sample_id.tolist()
    assert batch.is_right.tolist() == [[True, False]] * len(view)
    assert not batch.mirrored.any()
    for k, row in enumerate(view.row.tolist()):
        for slot in range(2):
            joints = store.label("joints_3d")[row, slot]
            np.testing.assert_array_equal(batch.joints_3d[k, slot], joints)
        A = batch.A_input_from_frame[k].double().numpy()
        K = store.label("K")[row]
        np.testing.assert_allclose(batch.K[k], np.vstack((A, [0, 0, 1])) @ K, rtol=1e-5, atol=1e-4)
        # the input square fills the input
        half = view.size_px[k].item() / 2
        corner = np.array([*(view.center_px[k].numpy() - half), 1])
        np.testing.assert_allclose(A @ corner, [-0.5, -0.5], atol=1e-4)
        picture = cv2.imdecode(np.frombuffer(jpeg(frame(row)), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        expected = cv2.warpAffine(
            picture[..., ::-1].astype(np.float32), A, (96, 96), borderMode=cv2.BORDER_REPLICATE
        )
        ours = batch.image[k].permute(1, 2, 0).numpy()
        # bilinear twice: the second pass smooths by up to half a pixel of curvature
        assert np.abs(ours - expected).mean() < np.abs(np.diff(expected, axis=1)).mean() / 2


def test_an_augmented_scene_keeps_labels_on_pixels_and_is_never_mirrored(tmp_path: Path) -> None:
    path = hand_store(tmp_path / "s.zarr", 8)
    store = open_store(path)
    config = PipelineConfig(
        store=str(path),
        batch_size=8,
        input_px=64,
        view=HAND_OBJECT,
        cache=CacheConfig(size_px=72, decode_threads=1),
        augment=AugmentConfig(rotation_deg=90),
    )
    batch = next(iter(Loader(config, device=torch.device("cpu"))))
    assert not batch.mirrored.any()
    assert (torch.linalg.det(batch.R_input_from_cam) > 0).all()
    turned = 0
    for k, row in enumerate((batch.sample_id // 2).tolist()):
        A, K = batch.A_input_from_frame[k].double().numpy(), store.label("K")[row].astype(float)
        for slot in range(2):
            for joint in np.flatnonzero(store.label("joint_valid")[row, slot]):
                x, y, w = K @ store.label("joints_3d")[row, slot, joint]
                moved = batch.K[k].double() @ batch.joints_3d[k, slot, joint].double()
                expected = A @ [x / w, y / w, 1]
                np.testing.assert_allclose(moved[:2] / moved[2], expected, atol=1e-2)
        turned += abs(float(np.arctan2(A[1, 0], A[0, 0]))) > 0.1
    assert turned > 2


def test_the_memory_plan_counts_scenes(scenes: Store, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"store={scenes.path}", "device_gib=24", "pipeline.view.kind=hand_object"]
    config = compose(PlanConfig, words)
    assert isinstance(config, PlanConfig)
    assert plan(config) == 0
    num = sum(box_of_scene(scenes, row) is not None for row in range(NUM_SCENES) if row != 7)
    assert f"resident rgb: {num} samples" in capsys.readouterr().out
