"""The InterHand2.6M reader against scalar code, and against the real frames where they are."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from model.hand import LEFT, RIGHT, JointSet
from model.mano.files import load_mano
from preprocess.records import SourceError
from preprocess.sources.interhand26m.source import open_source
from tests.preprocess.datasets import (
    decode,
    interhand_file,
    labels_at,
    write_interhand,
    write_mano,
)

# The official order of one hand: each finger from tip to base, then the wrist.
OFFICIAL = {
    "thumb": (3, 2, 1, 0), "index": (7, 6, 5, 4), "middle": (11, 10, 9, 8),
    "ring": (15, 14, 13, 12), "little": (19, 18, 17, 16),
}  # fmt: skip
STANDARD = [20, *(j for finger in OFFICIAL.values() for j in finger)]


def camera_point(world_mm: list[float], camera: dict[str, Any], name: str) -> list[float]:
    """Return X_cam = camrot (X - campos), one scalar at a time, metres."""
    moved = [world_mm[k] - camera["campos"][name][k] for k in range(3)]
    return [
        sum(camera["camrot"][name][row][k] * moved[k] for k in range(3)) / 1000.0
        for row in range(3)
    ]


def test_rows_and_splits_follow_data_json(tmp_path: Path) -> None:
    tables = write_interhand(tmp_path)
    source = open_source(tmp_path, None)
    assert source.joint_set is JointSet.interhand26m
    listed = [(split, image) for split in tables for image in tables[split]["data"]["images"]]
    assert len(source.rows) == len(listed) == 36
    for i, (split, image) in enumerate(listed):
        assert source.rows.image[i] == f"images/{split}/{image['file_name']}"
        assert source.rows.sequence[i] == f"{split}/Capture{image['capture']}/{image['seq_name']}"
        assert source.rows.camera[i] == image["camera"]
        assert source.rows.subject[i] == str(image["subject"])
        assert source.rows.frame_idx[i] == image["frame_idx"]
    for start, split in zip((0, 12, 24), ("train", "val", "test"), strict=True):
        assert source.splits[split].tolist() == list(range(start, start + 12))
        kinds = {a["image_id"]: a["hand_type"] for a in tables[split]["data"]["annotations"]}
        both = [i for i in range(start, start + 12) if kinds[listed[i][1]["id"]] == "interacting"]
        assert source.splits[f"{split}_interacting"].tolist() == both
        assert source.splits[f"{split}_single"].tolist() == sorted(
            set(range(start, start + 12)) - set(both)
        )


def test_joints_and_cameras_agree_with_scalar_code(tmp_path: Path) -> None:
    tables = write_interhand(tmp_path, splits=("val",))["val"]
    source = open_source(tmp_path, None)
    by_image = {a["image_id"]: a for a in tables["data"]["annotations"]}
    for i, image in enumerate(tables["data"]["images"]):
        labels = labels_at(source, i)
        camera = tables["camera"][str(image["capture"])]
        world = tables["joint_3d"][str(image["capture"])][str(image["frame_idx"])]["world_coord"]
        valid = by_image[image["id"]]["joint_valid"]
        for slot in (RIGHT, LEFT):
            for j, official in enumerate(STANDARD):
                k = official + 21 * slot
                assert labels.joint_valid[slot, j] == bool(valid[k][0])
                if valid[k][0]:
                    expected = camera_point(world[k], camera, image["camera"])
                    np.testing.assert_allclose(labels.joints_3d[slot, j], expected, atol=1e-12)
                else:
                    assert np.isnan(labels.joints_3d[slot, j]).all()
        (fx, fy), (cx, cy) = camera["focal"][image["camera"]], camera["princpt"][image["camera"]]
        assert labels.K.tolist() == [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
        # A world point, taken to the camera and back by the stored pose.
        back = labels.T_world_from_cam @ [
            *camera_point([12.0, -7.0, 30.0], camera, image["camera"]),
            1,
        ]
        np.testing.assert_allclose(back, [0.012, -0.007, 0.03, 1.0], atol=1e-9)
        assert np.isnan(labels.theta).all()
        assert np.isnan(labels.bbox_xyxy).all()


def test_the_official_box_serves_a_single_hand_without_joints(tmp_path: Path) -> None:
    tables = write_interhand(tmp_path, splits=("train",))["train"]
    for annotation in tables["data"]["annotations"]:
        annotation["joint_valid"] = [[0]] * 42
    interhand_file(tmp_path, "train", "data").write_text(json.dumps(tables["data"]))
    source = open_source(tmp_path, None)
    by_image = {a["image_id"]: a for a in tables["data"]["annotations"]}
    slots = {"right": [RIGHT], "left": [LEFT], "interacting": []}
    for i, image in enumerate(tables["data"]["images"]):
        boxes = labels_at(source, i).bbox_xyxy
        boxed = slots[by_image[image["id"]]["hand_type"]]
        for slot in (RIGHT, LEFT):
            if slot in boxed:
                assert boxes[slot].tolist() == [10.0, 8.0, 40.0, 28.0]
            else:
                assert np.isnan(boxes[slot]).all()


@pytest.mark.parametrize(
    "box",
    [[10, 8, -30, 20], [10, 8, 30, -20], [10, 8, 0, 20], [math.nan, 8, 30, 20], [10, 8, 1e300, 1]],
)
def test_a_box_without_area_is_counted_and_not_believed(tmp_path: Path, box: list[float]) -> None:
    tables = write_interhand(tmp_path, splits=("train",))["train"]
    for annotation in tables["data"]["annotations"]:
        annotation["joint_valid"] = [[0]] * 42
    number = next(
        i for i, a in enumerate(tables["data"]["annotations"]) if a["hand_type"] == "left"
    )
    image_id = tables["data"]["annotations"][number]["image_id"]
    tables["data"]["annotations"][number]["bbox"] = box
    interhand_file(tmp_path, "train", "data").write_text(json.dumps(tables["data"]))
    source = open_source(tmp_path, None)
    row = [image["id"] for image in tables["data"]["images"]].index(image_id)
    assert np.isnan(labels_at(source, row).bbox_xyxy).all()
    assert source.notes == {"images_with_an_unusable_box": 1}


def test_mano_in_the_camera_equals_vertices_moved_to_the_camera(tmp_path: Path) -> None:
    sides = write_mano(tmp_path / "mano")  # left file unfixed on disk, fixed in ``sides``
    tables = write_interhand(tmp_path / "ih", splits=("test",), mano=sides)["test"]
    source = open_source(tmp_path / "ih", load_mano(tmp_path / "mano"))
    seen = set()
    for i, image in enumerate(tables["data"]["images"]):
        labels = labels_at(source, i)
        camera = tables["camera"][str(image["capture"])]
        hands = tables["MANO_NeuralAnnot"][str(image["capture"])][str(image["frame_idx"])]
        for slot, side in ((RIGHT, "right"), (LEFT, "left")):
            if hands[side] is None:
                assert np.isnan(labels.theta[slot]).all()
                continue
            seen.add(side)
            arrays, hand = sides[side], hands[side]
            theta = np.array(hand["pose"])
            theta[3:] += arrays["hands_mean"]
            world = decode(arrays, theta, np.array(hand["shape"])) + hand["trans"]
            expected = [camera_point((1000.0 * v).tolist(), camera, image["camera"]) for v in world]
            decoded = decode(arrays, labels.theta[slot], labels.beta[slot]) + labels.transl[slot]
            assert np.abs(decoded - expected).max() < 1e-9
            assert labels.beta_raw[slot].tolist() == hand["shape"]
            shaped = arrays["v_template"] + arrays["shapedirs"] @ labels.beta[slot]
            np.testing.assert_allclose(labels.root_rest[slot], arrays["J_regressor"][0] @ shaped)
    assert seen == {"right", "left"}


def test_mano_file_is_optional(tmp_path: Path) -> None:
    write_mano(tmp_path / "mano")
    write_interhand(tmp_path / "ih", splits=("train",))
    labels = labels_at(open_source(tmp_path / "ih", load_mano(tmp_path / "mano")), 0)
    assert np.isnan(labels.theta).all()


def test_rotations_of_the_root_compose() -> None:
    """The J0 rule in one line of algebra, against scipy, so that the test above is understood."""
    rng = np.random.default_rng(0)
    R, root = (Rotation.from_rotvec(rng.normal(size=3)).as_matrix() for _ in range(2))
    rest, point, trans, t = rng.normal(size=(4, 3))
    world = root @ (point - rest) + rest + trans
    moved = R @ world + t
    again = (R @ root) @ (point - rest) + rest + (R @ (trans + rest) + t - rest)
    np.testing.assert_allclose(moved, again, atol=1e-12)


# --- bad input ------------------------------------------------------------------------------------


def rewrite(root: Path, name: str, change: Any) -> None:
    path = interhand_file(root, "train", name)
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def drop_annotation(table: dict[str, Any]) -> None:
    table["annotations"] = table["annotations"][:-2]


def drop_key(table: dict[str, Any]) -> None:
    del table["images"][5]["seq_name"]


def bad_hand_type(table: dict[str, Any]) -> None:
    table["annotations"][0]["hand_type"] = "foot"


def drop_camera(table: dict[str, Any]) -> None:
    for field in table["3"].values():
        del field["400012"]


def drop_focal(table: dict[str, Any]) -> None:
    del table["3"]["focal"]["400012"]


def bad_rotation(table: dict[str, Any]) -> None:
    table["0"]["camrot"]["400002"] = [[1, 0, 0], [0, 1, 0]]


def drop_frame(table: dict[str, Any]) -> None:
    del table["0"]["90"]


def short_joints(table: dict[str, Any]) -> None:
    table["3"]["80"]["world_coord"].pop()


def same_id(table: dict[str, Any]) -> None:
    table["images"][5]["id"] = table["images"][2]["id"]


def same_file(table: dict[str, Any]) -> None:
    table["images"][5]["file_name"] = table["images"][2]["file_name"]


def two_annotations(table: dict[str, Any]) -> None:
    table["annotations"].append(table["annotations"][0])


def endless_frame(table: dict[str, Any]) -> None:
    table["images"][5]["frame_idx"] = 10**12


def infinite_id(table: dict[str, Any]) -> None:
    table["images"][5]["id"] = math.inf


def no_images(table: dict[str, Any]) -> None:
    table["images"] = []


def endless_joint(table: dict[str, Any]) -> None:
    table["3"]["80"]["world_coord"][0][0] = 10**400


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "data",
            drop_annotation,
            ("12 images (10 annotations)", "2 have no complete annotation", "Capture0/ROM00"),
        ),
        ("data", drop_key, ("1 lack an official key", "number 5")),
        ("data", bad_hand_type, ("1 have no complete annotation",)),
        ("data", same_id, ("1 have an id or a file that another has", "cam400002")),
        ("data", same_file, ("1 have an id or a file that another has",)),
        ("data", two_annotations, ("12 images (13 annotations)", "1 have several annotations")),
        ("data", endless_frame, ("1 lack an official key", "number 5")),
        ("data", infinite_id, ("1 lack an official key", "number 5")),
        ("data", no_images, ("lists no images", "without this split")),
        ("data", dict.clear, ("no lists 'images' and 'annotations'",)),
        ("camera", drop_camera, ("3 have no entry in camera.json", "cam400012")),
        ("camera", drop_focal, ("1 of 4 entries", "[3][400012]")),
        ("camera", bad_rotation, ("1 of 4 entries", "[0][400002]", "official shape")),
        ("joint_3d", drop_frame, ("2 have no entry in joint_3d.json", "image90.jpg")),
        ("joint_3d", endless_joint, ("1 of 6 entries", "[3][80]")),
        ("joint_3d", short_joints, ("1 of 6 entries", "[3][80]")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_file_is_named(
    tmp_path: Path, name: str, change: Any, words: tuple[str, ...]
) -> None:
    write_interhand(tmp_path, splits=("train",))
    rewrite(tmp_path, name, change)
    with pytest.raises(SourceError) as error:
        open_source(tmp_path, None)
    for word in ("interhand26m:", "train", *words, "unpack"):
        assert word in str(error.value)


def test_bad_json_and_bad_structure_are_named(tmp_path: Path) -> None:
    write_interhand(tmp_path, splits=("train",))
    path = interhand_file(tmp_path, "train", "camera")
    text = path.read_text()
    path.write_text(text[:-10])
    with pytest.raises(SourceError, match=r"train_camera.json is not valid JSON"):
        open_source(tmp_path, None)
    path.write_text("[1, 2]")
    with pytest.raises(SourceError, match=r"train_camera.json does not map captures to entries"):
        open_source(tmp_path, None)


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    write_interhand(tmp_path, splits=("train", "val"))
    interhand_file(tmp_path, "train", "camera").unlink()
    interhand_file(tmp_path, "val", "joint_3d").unlink()
    with pytest.raises(SourceError) as error:
        open_source(tmp_path, None)
    for word in ("InterHand2.6M_train_camera.json", "InterHand2.6M_val_joint_3d.json"):
        assert word in str(error.value)


def test_a_root_without_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match=r"has no annotations/"):
        open_source(tmp_path, None)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(SourceError, match=r"none of the folders train, val, test"):
        open_source(tmp_path, None)


def test_what_is_passed_over_and_what_is_missing_is_named(tmp_path: Path) -> None:
    tables = write_interhand(tmp_path, splits=("train",))
    assert "warnings" not in open_source(tmp_path, None).notes
    for folder in ("annotations/all", "images/val", "images/train/Capture9"):
        (tmp_path / folder).mkdir()
    for name in ("skeleton.txt", "subject.txt", "._skeleton.txt"):
        (tmp_path / "annotations" / name).touch()
    (tmp_path / "images/train/Capture0/ROM00").rename(tmp_path / "images/train/Capture0/ROM99")
    rewrite(tmp_path, "data", lambda table: table["annotations"].append({"id": 99, "image_id": 5}))
    source = open_source(tmp_path, None)
    assert len(source.rows) == len(tables["train"]["data"]["images"])
    names = ["annotations/all/", "images/train/Capture0/ROM99/", "images/train/Capture9/"]
    names.append("images/val/")
    assert source.notes["passed_over"] == {"count": 4, "names": names}
    missing = {"sequences of the train annotation not in images/train": ["Capture0/ROM00"]}
    assert {what: note["names"] for what, note in source.notes["missing"].items()} == missing
    assert source.notes["hidden_files"] == 1
    first, second, third = source.notes["warnings"]
    assert (
        first == "1 of 6 sequences of the train annotation are not in images/train: Capture0/ROM00"
    )
    assert second.startswith("1 of 13 annotations in annotations/train/InterHand2.6M_train_data.js")
    assert third.endswith(
        "annotations/all/, images/train/Capture0/ROM99/, images/train/Capture9/ and 1 more"
    )


# --- real frames ----------------------------------------------------------------------------------


def test_real_frames_project_into_their_official_boxes(request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath / "../shared/real/InterHand2.6M"
    if not root.is_dir():
        pytest.skip("../shared/real is not there")
    source = open_source(root, None)
    tables = {
        name: json.loads(interhand_file(root, "train", name).read_text())
        for name in ("data", "camera", "joint_3d")
    }
    by_image = {a["image_id"]: a for a in tables["data"]["annotations"]}
    assert len(source.rows) == 4
    for i, image in enumerate(tables["data"]["images"]):
        labels = labels_at(source, i)
        camera = tables["camera"][str(image["capture"])]
        world = tables["joint_3d"][str(image["capture"])][str(image["frame_idx"])]["world_coord"]
        annotation = by_image[image["id"]]
        fx, fy = camera["focal"][image["camera"]]
        cx, cy = camera["princpt"][image["camera"]]
        left, top, width, height = annotation["bbox"]
        for slot in (RIGHT, LEFT):
            for j, official in enumerate(STANDARD):
                k = official + 21 * slot
                if not annotation["joint_valid"][k][0]:
                    assert not labels.joint_valid[slot, j]
                    continue
                # The official formula, with its epsilon.
                x, y, z = camera_point(world[k], camera, image["camera"])
                u, v = x / (z + 1e-8) * fx + cx, y / (z + 1e-8) * fy + cy
                ours = labels.K @ labels.joints_3d[slot, j]
                assert math.isclose(ours[0] / ours[2], u, abs_tol=1e-3)
                assert math.isclose(ours[1] / ours[2], v, abs_tol=1e-3)
                assert left <= u <= left + width
                assert top <= v <= top + height
                assert 0.5 < z < 2.0
