"""The ARCTIC reader against trees written without our code, and the official counts."""

import itertools
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from model.hand import LEFT, RIGHT, JointSet
from model.mano.files import ManoModels, load_mano
from pipeline.store.reader import open_store
from preprocess.builder.build import build
from preprocess.config import BuildConfig, ImageConfig, ImageEncoding, OnBadImage, Region
from preprocess.records import DatasetSource, LabelStack, Lens, SourceError
from preprocess.sources.arctic.files import OBJECTS, SEQUENCE
from preprocess.sources.arctic.source import open_source
from preprocess.sources.arctic.valid import distorted, in_view
from tests.preprocess.datasets import write_mano
from tests.preprocess.sources.arctic.processed import counted_by_hand
from tests.preprocess.sources.arctic.tree import (
    BASE,
    DIST8,
    LID,
    RowTruth,
    Spec,
    write_arctic,
    write_meta,
)
from tests.preprocess.sources.dexycb.tree import Arrays, published, skin

AGREE_M = 1e-4
AGREE_PX = 0.05
AHEAD = np.array([0.0, 0.0, 1.0])
SPECS = (
    Spec(name="s01/box_use_01", num_frames=30),
    Spec(name="s05/box_grab_01", num_frames=26, missing=(14,)),
    Spec(name="s03/box_use_02", num_frames=24, labels=False),
    Spec(name="s02/box_use_01", num_frames=23),
)
OFFSETS = {"s01": 3, "s05": 1, "s03": 0, "s02": 12}
ORDER = ("s01/box_use_01", "s02/box_use_01", "s05/box_grab_01", "s03/box_use_02")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiny:
    root: Path
    sides: dict[str, Arrays]
    mano: ManoModels
    truth: dict[str, RowTruth]
    """By image."""
    source: DatasetSource
    labels: LabelStack
    """Of all rows in official order."""


def write_protocols(root: Path, extra: tuple[str, ...] = ()) -> None:
    (root / "splits_json").mkdir()
    lists = {
        "train": ["s01/box_use_01", "s02/box_use_01", "s05/box_grab_01", *extra],
        "val": ["s05/box_grab_01"],
        "test": ["s03/box_use_02"],
    }
    for name in ("p1", "p2"):
        (root / "splits_json" / f"protocol_{name}.json").write_text(json.dumps(lists))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("arctic")
    root = folder / "data"
    sides = write_mano(folder / "mano")
    rows = write_arctic(root, sides, SPECS, OFFSETS)
    write_protocols(root)
    mano = load_mano(folder / "mano")
    source = open_source(root, mano)
    labels = source.label_job(range(len(source.rows)))()
    truth = {row.image: row for row in rows}
    return Tiny(root=root, sides=sides, mano=mano, truth=truth, source=source, labels=labels)


def rows_with_labels(tiny: Tiny) -> list[tuple[int, RowTruth]]:
    """Return index and truth of the rows whose frame was captured."""
    found = []
    for i, image in enumerate(tiny.source.rows.image):
        row = tiny.truth.get(image)
        if row is not None and row.number >= OFFSETS[row.sequence[:3]]:
            found.append((i, row))
    return found


def test_rows_come_by_sequence_file_view(tiny: Tiny) -> None:
    rows = tiny.source.rows
    expected = [
        (f"images/{name}/{view}/{number:05d}.jpg", name, str(view), number)
        for name in ORDER
        for number in range(10, next(s.num_frames for s in SPECS if s.name == name) - 10)
        for view in range(9)
    ]
    found = zip(rows.image, rows.sequence, rows.camera, rows.frame_idx.tolist(), strict=True)
    assert list(found) == expected
    assert set(rows.subject) == {"s01", "s02", "s03", "s05"}
    assert tiny.source.joint_set is JointSet.smplx
    assert tiny.source.left_as_shipped


def test_joints_and_cameras_are_the_truth(tiny: Tiny) -> None:
    views = set()
    for i, row in rows_with_labels(tiny):
        views.add(row.view)
        np.testing.assert_allclose(tiny.labels.K[i], row.K, rtol=1e-12)
        np.testing.assert_allclose(
            tiny.labels.T_world_from_cam[i], np.linalg.inv(row.T_cam_from_world), atol=1e-9
        )
        assert tiny.labels.joint_valid[i].all()
        np.testing.assert_allclose(tiny.labels.joints_3d[i], row.joints, rtol=0, atol=AGREE_M)
        ours = tiny.labels.joints_3d[i]
        pixels = [(x @ row.K.T)[..., :2] / x[..., 2:] for x in (ours, row.joints)]
        assert np.abs(pixels[0] - pixels[1]).max() < AGREE_PX
    assert views == set(range(9))


def test_hands_decode_to_the_true_vertices_as_shipped(tiny: Tiny) -> None:
    for i, row in rows_with_labels(tiny)[::7]:
        np.testing.assert_allclose(tiny.labels.beta_raw[i], row.betas, rtol=1e-7)
        for slot, side in ((RIGHT, "right"), (LEFT, "left")):
            arrays = published(tiny.sides, side)
            wrist = tiny.labels.root_rest[i, slot] + tiny.labels.transl[i, slot]
            betas = row.betas[slot]
            rest = arrays["J_regressor"][0] @ (arrays["v_template"] + arrays["shapedirs"] @ betas)
            vertices, _ = skin(arrays, tiny.labels.theta[i, slot], betas)
            found = vertices + wrist - rest
            np.testing.assert_allclose(found, row.vertices[slot], rtol=0, atol=AGREE_M)
        assert tiny.labels.refit_error_m[i, RIGHT] == 0.0
        assert tiny.labels.refit_error_m[i, LEFT] > 0.0


def test_both_parts_of_the_object_are_where_they_are(tiny: Tiny) -> None:
    """The lid rotated by -angle about z in our object frame gives the true vertices."""
    for i, row in rows_with_labels(tiny):
        pose, angle = tiny.labels.object_pose[i, 0], tiny.labels.object_arti_rad[i, 0]
        np.testing.assert_allclose(pose, row.T_cam_from_obj[:3], atol=1e-6)
        assert angle == pytest.approx(row.arti_rad, abs=1e-6)
        c, s = np.cos(-angle), np.sin(-angle)
        lid = LID / 1000 @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
        posed = np.concatenate([lid, BASE / 1000]) @ pose[:, :3].T + pose[:, 3]
        np.testing.assert_allclose(posed, row.object_vertices, atol=AGREE_M)
    names = [file.name for file in tiny.source.objects]
    assert names[int(tiny.labels.object_id[0, 0])] == "box"
    assert (tiny.labels.object_id[:, 1:] == -1).all()


def test_what_was_not_captured_has_no_label(tiny: Tiny) -> None:
    """s03 is hidden; file 10 of s02 comes before its first captured frame, 12."""
    for i, image in enumerate(tiny.source.rows.image):
        hidden = "/s03/" in image or ("/s02/" in image and int(image[-9:-4]) < 12)
        assert tiny.labels.joint_valid[i].any() != hidden
        assert np.isfinite(tiny.labels.object_pose[i, 0]).all() != hidden


def test_without_mano_there_are_objects_and_cameras(tiny: Tiny) -> None:
    source = open_source(tiny.root, None)
    labels = source.label_job([0, 5])()
    assert not labels.joint_valid.any()
    np.testing.assert_array_equal(labels.object_pose, tiny.labels.object_pose[[0, 5]])


def test_what_the_protocol_counts_is_in_view(tiny: Tiny) -> None:
    for i, row in rows_with_labels(tiny):
        size = (84, 60) if row.view == 0 else (60, 84)
        assert tiny.labels.official_valid[i].tolist() == counted_by_hand(row, size)
    for i, image in enumerate(tiny.source.rows.image):
        if "/s03/" in image:
            assert not tiny.labels.official_valid[i].any()


def test_hands_and_objects_beside_the_box_do_not_count() -> None:
    """Scenes as large as the real images, with the hands scattered about the object."""
    rng = np.random.default_rng(0)
    kinds = set()
    for i in range(120):
        view = i % 3
        size = (2800, 2000) if view == 0 else (2000, 2800)
        K = np.array([[2000.0, 0, size[0] / 2], [0, 2010.0, size[1] / 2], [0, 0, 1]])
        place = rng.normal(0, 0.25, 3) + AHEAD
        box = rng.normal(0, 0.08, (16, 3)) + place
        joints = rng.normal(0, 0.03, (2, 21, 3)) + place + rng.normal(0, 0.15, (2, 1, 3))
        row = RowTruth(
            image="", sequence="", view=view, number=0, K=K, T_cam_from_world=np.eye(4),
            vertices=np.zeros(0), joints=joints, object_vertices=box, T_cam_from_obj=np.eye(4),
            arti_rad=0.0, betas=np.zeros(0),
        )  # fmt: skip
        lens = Lens(K=K, dist8=DIST8) if view == 0 else None
        found = in_view(joints[None], box[None], K, np.array(size, float), lens)[0].tolist()
        assert found == counted_by_hand(row, size), i
        kinds.add((view == 0, *found))
    assert len(kinds) >= 10


def test_points_are_distorted_as_opencv_does() -> None:
    points = np.random.default_rng(1).normal(0, 0.2, (50, 3)) + AHEAD
    K = np.array([[500.0, 0, 400], [0, 510.0, 300], [0, 0, 1]])
    moved = distorted(points, Lens(K=K, dist8=DIST8))
    zero = np.zeros(3)
    expected = cv2.projectPoints(points, zero, zero, K, DIST8)[0][:, 0]
    np.testing.assert_allclose((moved @ K.T)[:, :2] / moved[:, 2:], expected, atol=1e-9)
    np.testing.assert_array_equal(moved[:, 2], points[:, 2])


# --- splits ---------------------------------------------------------------------------------------


def test_splits_are_views_of_sequences_in_official_order(tiny: Tiny) -> None:
    rows, splits = tiny.source.rows, tiny.source.splits
    for protocol, views in (("p1", range(1, 9)), ("p2", (0,))):
        for split, names in (("train", ORDER[:2]), ("val", ORDER[2:3]), ("test", ORDER[3:])):
            expected = [
                f"images/{name}/{view}/{number:05d}.jpg"
                for name in names
                for number in range(10, next(s.num_frames for s in SPECS if s.name == name) - 10)
                for view in views
            ]
            found = [rows.image[i] for i in splits[f"{protocol}_{split}"]]
            assert found == expected, (protocol, split)


def test_without_lists_the_rule_gives_the_same(tiny: Tiny, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name in ("images", "raw_seqs", "meta"):
        (root / name).symlink_to(tiny.root / name)
    source = open_source(root, None)
    for name, rows in tiny.source.splits.items():
        images = {tiny.source.rows.image[i] for i in rows}
        assert {source.rows.image[i] for i in source.splits[name]} == images
    assert "by the rule val = s05, test = s03" in source.notes["splits"]


PER_SUBJECT = {
    "s01": 34, "s02": 37, "s03": 38, "s04": 31, "s05": 34, "s06": 36, "s07": 29, "s08": 42,
    "s09": 37, "s10": 21,
}  # fmt: skip
RETAKES = (
    "s02/microwave_use_01_retake", "s03/box_use_01_retake", "s03/espressomachine_use_02_retake",
    "s03/phone_use_01_retake", "s04/espressomachine_use_01_retake", "s05/scissors_use_01_retake",
    "s06/ketchup_grab_01_retake2", "s06/laptop_use_01_retake", "s06/laptop_use_02_retake",
    "s06/waffleiron_grab_01_retake", "s07/mixer_grab_01_retake", "s10/phone_use_01_retake",
)  # fmt: skip
FIRST_TAKES = ("s06/laptop_use_01", "s02/microwave_use_01")
"""Two retakes stand beside their first take; which ones is ours."""


def official_names() -> list[str]:
    """Return 339 names, as many of each subject as there are, with the official retakes."""
    names = []
    for subject, num in PER_SUBJECT.items():
        own = [name for name in (*RETAKES, *FIRST_TAKES) if name.startswith(subject)]
        ours = (
            f"{subject}/{thing}_{action}_{i:02d}"
            for i in range(1, 5)
            for action in ("use", "grab")
            for thing in OBJECTS
        )
        free = (n for n in ours if n not in own and f"{n}_retake" not in own)
        names += [*own, *itertools.islice(free, num - len(own))]
    assert len(set(names)) == 339
    return names


def counted_root(root: Path) -> Path:
    """Write a tree of the official 339 sequences and 218,273 captured frames, almost empty."""
    write_meta(root, dict.fromkeys(PER_SUBJECT, 0))
    for thing in OBJECTS:
        target = root / "meta" / "object_vtemplates" / thing
        if thing != "box":
            target.symlink_to("box")
    ego: Any = {
        "R_k_cam_np": np.eye(3)[None],
        "T_k_cam_np": np.zeros((1, 3, 1)),
        "intrinsics": np.eye(3),
        "dist8": np.zeros(8),
    }
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in official_names():
        lists[{"s05": "val", "s03": "test"}.get(name[:3], "train")].append(name)
        (root / "images" / name).mkdir(parents=True)
    for split, total in (("train", 192_390), ("val", 25_883)):
        names = lists[split]
        for place, name in enumerate(names):
            frames = total // len(names) + (place < total % len(names))
            stem = root / "raw_seqs" / name
            stem.parent.mkdir(parents=True, exist_ok=True)
            np.save(f"{stem}.object.npy", np.zeros((frames, 7), np.float32))
            np.save(f"{stem}.mano.npy", np.zeros(1, np.float32))
            np.save(f"{stem}.egocam.dist.npy", np.array(ego, dtype=object), allow_pickle=True)
    for name in lists["test"]:  # hidden: 700 frames by the number of the last image
        (root / "images" / name / "3").mkdir()
        (root / "images" / name / "3" / "00699.jpg").touch()
    (root / "splits_json").mkdir()
    for protocol in ("p1", "p2"):
        (root / "splits_json" / f"protocol_{protocol}.json").write_text(json.dumps(lists))
    return root


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counted_root(tmp_path_factory.mktemp("counted"))


def test_the_official_counts(counted: Path) -> None:
    """Of sequences as many as each subject has, and of their frames in all (dataset notes, 5.6)."""
    source = open_source(counted, None)
    counts = {name: len(rows) for name, rows in source.splits.items()}
    assert counts["p1_train"] == 1_496_400
    assert counts["p1_val"] == 201_624
    assert {name: counts[name] for name in source.official_counts} == source.official_counts
    assert (counts["p1_smalltrain"], counts["p1_tinytrain"], counts["p1_minitrain"]) == (
        100_000, 12_000, 300,
    )  # fmt: skip
    assert (counts["p2_tinyval"], counts["p2_minival"]) == (500, 80)
    assert counts["p1_test"] == 8 * 38 * 680
    assert set(RETAKES) <= set(source.rows.sequence)
    assert "warnings" not in source.notes
    # Drawn from names, as the official code does.
    names = [source.rows.image[i] for i in source.splits["p1_val"]]
    random.seed(1)
    assert random.randint(0, 100) == 17
    drawn = [source.rows.image[i] for i in source.splits["p1_minival"]]
    assert drawn == random.sample(names, 80)


@pytest.mark.parametrize("offset", [0, 12, 12.0, -3])
def test_frames_of_a_hidden_sequence_come_from_the_largest_file_number(
    tmp_path: Path, offset: float
) -> None:
    """Whatever is missing or lies beside the images; F = largest number - ioi_offset + 1."""
    root = tmp_path / "data"
    write_meta(root, {"s03": 0})
    misc = json.loads((root / "meta" / "misc.json").read_text())
    misc["s03"]["ioi_offset"] = offset
    (root / "meta" / "misc.json").write_text(json.dumps(misc))
    (root / "raw_seqs").mkdir()
    for view, numbers in ((0, (12, 13)), (5, (40, 38)), (8, ())):
        folder = root / "images" / "s03" / "box_use_01_retake" / str(view)
        folder.mkdir(parents=True)
        for number in numbers:
            (folder / f"{number:05d}.jpg").touch()
    for name in ("._00077.jpg", "00078.JPG", "00079.jpg.part", "80.jpg"):
        (folder / name).touch()
    source = open_source(root, None)
    num_frames = 40 - int(offset) + 1
    assert len(source.rows) == 9 * (num_frames - 20)
    assert source.rows.frame_idx[-1] == num_frames - 11
    assert source.notes["passed_over"]["count"] == 3
    assert source.notes["hidden_files"] == 1


def test_every_official_name_is_a_sequence_and_keeps_its_suffix() -> None:
    for name in (*official_names(), "s01/box_use_01_take-3", "s01/phone_grab_1"):
        assert SEQUENCE.fullmatch(name.split("/")[1]), name
    for name in ("box_lift_01", "cup_use_01", "box_use_", "._box_use_01", "use_01", "Box_use_01"):
        assert not SEQUENCE.fullmatch(name), name


def test_what_is_passed_over_and_what_is_missing_is_named(tmp_path: Path) -> None:
    """Folders, files and hidden entries that are no sequence, and sequences that are not there."""
    root = tmp_path / "data"
    write_arctic(root, write_mano(tmp_path / "mano"), SPECS, OFFSETS)
    write_protocols(root, extra=("s01/box_use_07_retake", "s02/box_use_09"))
    (root / "images" / "backgrounds").mkdir()
    for folder in ("old", "s01/cup_use_01", "s01/box_lift_01", "s05/._box_use_01"):
        (root / "images" / folder).mkdir()
    (root / "images" / "s01" / "box_use_02").write_bytes(b"a file with the name of a sequence")
    (root / "images" / "s03" / "box_use_02" / "4" / "00001 copy.jpg").touch()
    (root / "raw_seqs" / "s01" / "box_use_01.npz").touch()
    (root / "raw_seqs" / "s01" / "box_grab_07.mano.npy").touch()
    (root / "images" / "s02" / "box_grab_01_retake").mkdir()
    source = open_source(root, None)
    assert source.notes["passed_over"]["names"] == [
        "images/old/",
        "images/s01/box_lift_01/",
        "images/s01/box_use_02",
        "images/s01/cup_use_01/",
        "images/s03/box_use_02/4/00001 copy.jpg",
        "raw_seqs/s01/box_use_01.npz",
    ]
    assert source.notes["hidden_files"] == 1
    assert {what: note["names"] for what, note in source.notes["missing"].items()} == {
        "sequences of the protocols not in images": ["s01/box_use_07_retake", "s02/box_use_09"],
        "sequences of raw_seqs not in images": ["s01/box_grab_07"],
        "sequences with images not in splits_json": ["s02/box_grab_01_retake"],
        "sequences with images and public labels not in raw_seqs": ["s02/box_grab_01_retake"],
    }
    first, *_, last = source.notes["warnings"]
    assert first == (
        "2 of 6 sequences of the protocols are not in images: s01/box_use_07_retake, s02/box_use_09"
    )
    assert "6 of " in last
    assert "images/old/, images/s01/box_lift_01/, images/s01/box_use_02 and 3 more" in last


# --- stores ---------------------------------------------------------------------------------------


def settings(tiny: Tiny, out: Path) -> BuildConfig:
    return BuildConfig(
        dataset="arctic",
        root=str(tiny.root),
        out=str(out),
        mano=str(tiny.root.parent / "mano"),
        workers=1,
        on_bad_image=OnBadImage.flag,
    )


def test_a_store_has_contact_parts_and_straight_images(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "arctic.zarr"
    report = build(replace(settings(tiny, out), shard_rows=64))
    assert report.attributes.image_encoding == "recode"
    assert report.attributes.extra["recode"]["undistort"] is True
    store = open_store(out)
    official = store.label("official_idx")
    images = [tiny.source.rows.image[i] for i in official]
    ok = store.label("sample_ok")
    missing = {name for name, good in zip(images, ok, strict=True) if not good}
    gone = [("s05/box_grab_01", 14), ("s02/box_use_01", 10), ("s02/box_use_01", 11)]
    assert missing == {f"images/{s}/{view}/{i:05d}.jpg" for s, i in gone for view in range(9)}
    touched = 0
    for row, image in enumerate(images):
        true = tiny.truth.get(image)
        if true is None or not store.label("has_contact")[row].all():
            continue
        touched += 1
        joints = store.label("joints_3d")[row]
        np.testing.assert_allclose(joints, true.joints, rtol=0, atol=AGREE_M)
        # The object is two boxes: their distances in the frames of lid and base.
        pose, angle = store.label("object_pose")[row, 0], store.label("object_arti_rad")[row, 0]
        own = (true.vertices - pose[:, 3]) @ pose[:, :3]
        c, s = np.cos(angle), np.sin(angle)
        closed = own @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
        gaps = [
            np.linalg.norm(np.maximum(np.maximum(box.min(0) - p, p - box.max(0)), 0), axis=-1)
            for box, p in ((LID / 1000, closed), (BASE / 1000, own))
        ]
        steps = np.ceil(np.minimum(*gaps) / 0.25e-3 - 1e-6)
        expected = np.where(steps > 254, 255, steps)
        assert np.abs(store.label("contact_dist")[row] - expected).max() <= 1
    assert touched > 50
    assert store.label("in_contact").any()
    row = images.index("images/s01/box_use_01/0/00012.jpg")
    raw = cv2.imread(str(tiny.root / images[row]))
    assert raw is not None
    straight = cv2.undistort(raw, tiny.truth[images[row]].K, DIST8)
    stored = cv2.imdecode(np.frombuffer(store.jpeg(row), np.uint8), cv2.IMREAD_COLOR)
    assert stored is not None
    assert np.abs(stored.astype(int) - straight).mean() < 3.0
    assert np.abs(stored.astype(int) - raw).mean() > 6.0
    store.close()


def test_passthrough_of_distorted_images_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = BuildConfig(
        dataset="arctic",
        root=str(tiny.root),
        out=str(tmp_path / "a.zarr"),
        image=ImageConfig(encoding=ImageEncoding.passthrough),
    )
    with pytest.raises(SourceError, match=r"have lens distortion, and the labels do not; pass"):
        build(config)


# --- faults ---------------------------------------------------------------------------------------


def _drop(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def _pipe(path: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        (root / path).unlink()
        os.mkfifo(root / path)

    return edit


def _edit_misc(key: str, value: Any) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "meta" / "misc.json"
        content = json.loads(path.read_text())
        content["s01"][key] = value
        path.write_text(json.dumps(content))

    return edit


def _save(kind: str, value: Any) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "raw_seqs" / "s01" / f"box_use_01.{kind}.npy"
        np.save(path, value, allow_pickle=True)

    return edit


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_drop("meta/misc.json"), r"has no meta/misc.json"),
        (_edit_misc("ioi_offset", "3"), r"s01.ioi_offset must be a whole number, got '3'"),
        (_edit_misc("ioi_offset", 3.5), r"ioi_offset must be a whole number, got 3.5"),
        (_edit_misc("ioi_offset", 10**30), r"ioi_offset must be a whole number, got 1000"),
        (_edit_misc("ioi_offset", None), r"ioi_offset must be a whole number, got None"),
        (_edit_misc("ioi_offset", float("nan")), r"ioi_offset must be a whole number, got nan"),
        (_edit_misc("image_size", [[-2800, 2000]] * 9), r"image_size must hold pixels, got -2800"),
        (_edit_misc("world2cam", [[1]]), r"s01.world2cam must hold finite numbers of shape"),
        (_edit_misc("world2cam", np.zeros((8, 4, 4)).tolist()), r"world2cam\[0\] is not a rot"),
        (_drop("raw_seqs/s01/box_use_01.object.npy"), r"object.npy cannot be read \(No such"),
        (_drop("raw_seqs/s01/box_use_01.egocam.dist.npy"), r"egocam.dist.npy cannot be read"),
        (_drop("meta/object_vtemplates/box/parts.json"), r"has no .*box/parts.json"),
        (_pipe("raw_seqs/s01/box_use_01.object.npy"), r"object.npy is a FIFO, socket or device"),
        (_save("object", np.zeros((30, 6))), r"must hold 7 numbers per frame, got shape \(30, 6\)"),
        (_save("object", np.full((30, 7), np.nan)), r"found NaN or infinity"),
        (_save("mano", np.array({"right": {}}, object)), r"right.rot must hold finite numbers"),
        (_save("mano", np.array(np.sum, object)), r"box_use_01.mano.npy"),
        (_save("object", np.zeros((29, 7))), r"rot must hold finite numbers of shape \(29, 3\)"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_sentence(
    tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    root = tmp_path / "data"
    sides = write_mano(tmp_path / "mano")
    write_arctic(root, sides, (Spec(name="s01/box_use_01", num_frames=30),), {"s01": 3})
    damage(root)
    with pytest.raises(SourceError, match=sentence):
        open_source(root, None).label_job([0])()


def test_no_sequence_is_one_sentence(tmp_path: Path) -> None:
    write_meta(tmp_path, {"s01": 0})
    for name in ("images", "raw_seqs"):
        (tmp_path / name).mkdir()
    with pytest.raises(SourceError, match=r"holds no sequence such as s01/box_use_01"):
        open_source(tmp_path, None)


def test_a_crop_of_the_hands_and_the_object_holds_both(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "crop.zarr"
    crop = ImageConfig(region=Region.hand_object, margin=1.2)
    build(replace(settings(tiny, out), image=crop))
    store = open_store(out)
    for row in range(0, len(store.label("K")), 40):
        image = tiny.source.rows.image[int(store.label("official_idx")[row])]
        true = tiny.truth.get(image)
        if true is None or not store.label("has_joints")[row].any():
            continue
        K = store.label("K")[row].astype(float)
        pixels = (true.joints @ K.T)[..., :2] / true.joints[..., 2:]
        A = store.label("A_stored_from_raw")[row]
        raw = (true.joints @ true.K.T)[..., :2] / true.joints[..., 2:]
        assert np.abs(raw @ A[:, :2].T + A[:, 2] - pixels).max() < AGREE_PX
    store.close()
