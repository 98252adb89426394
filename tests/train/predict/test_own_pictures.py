"""Boxes of other programs, cameras of files, shaded meshes, tables and videos."""

import csv
import io
import json
import math
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image

from model.hand import JOINT_NAMES
from tests.pipeline.hand_store import frame
from tests.train.predict.networks import Trained, a_box, blank, config, predicted, write_json
from tests.train.predict.networks import write_image as write
from tests.train.predict.test_every_input import write_video
from train.config import MeshFormat, Side
from train.predict.boxes import HandBox, is_crop, read_boxes
from train.predict.cameras import Cameras
from train.predict.exif import focal_px_of
from train.predict.predict import main
from train.predict.shade import Surface, draw_surfaces, rasterise
from train.predict.tables import write_video as write_frames

POINTS = [[10.0 + 3 * i, 40.0 - i] for i in range(21)]
AROUND = (10.0, 20.0, 70.0, 40.0)
RIGHT, LEFT = (HandBox(is_right=right, box_xyxy=AROUND) for right in (True, False))


# --- what is a crop -------------------------------------------------------------------------------


def test_photos_without_boxes_are_no_hands(
    joints_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "images" / "photo.png", frame(0))
    write(tmp_path / "images" / "square.png", frame(0)[:, :96])
    record = predicted(joints_run, tmp_path / "images", tmp_path / "out", code=1, boxes=None)
    assert list(record["images"]) == ["square.png"]
    (skipped,) = record["skipped"]
    assert skipped["name"] == "photo.png"
    assert skipped["reason"].startswith("128 x 96 pixels are no square crop of a hand: boxes=FILE")
    assert "boxes=none takes whole images" in " ".join(capsys.readouterr().out.split())
    write_video(tmp_path / "v.mp4", 2)
    with pytest.raises(ValueError, match=r"v.mp4': 128 x 96 pixels are no square crop"):
        main(config(joints_run, tmp_path / "v.mp4", boxes=None))
    assert is_crop((224, 224))
    assert not is_crop((240, 224))


# --- boxes ----------------------------------------------------------------------------------------


def boxes_of(tmp_path: Path, record: Any, **options: Any) -> dict[str, tuple[HandBox, ...]]:
    return read_boxes(write_json(tmp_path / "b.json", record), **options).by_name


def test_points_are_boxes_and_sides_may_be_missing(tmp_path: Path) -> None:
    record = {"a.jpg": [{"joints_2d": POINTS}, {"joints_2d": POINTS, "side": "left"}]}
    assert boxes_of(tmp_path, record)["a.jpg"] == (RIGHT, LEFT, LEFT)
    assert boxes_of(tmp_path, record, side=Side.right)["a.jpg"] == (RIGHT, LEFT)
    assert read_boxes(str(tmp_path / "b.json")).num_without_side == 1
    with pytest.raises(ValueError, match=r"joints_2d must be 21 points \[x, y\]"):
        boxes_of(tmp_path, {"a.jpg": [{"joints_2d": POINTS[:20]}]})


KEYPOINTS = [value for point in POINTS for value in (*point, 2)]
XYWH = [10, 20, 60, 20]


def test_coco_results_name_images_by_number_or_name(tmp_path: Path) -> None:
    record = [
        {"image_id": 7, "category_id": 1, "bbox": XYWH, "score": 0.9},
        {"image_id": "b", "bbox": [0, 0, 5, 5], "keypoints": KEYPOINTS},
        {"image_id": "b.png", "bbox": XYWH, "keypoints": [0] * 63},
        {"image_id": 99, "bbox": XYWH},
    ]
    found = boxes_of(tmp_path, record, names=["000007.jpg", "b.png", "c.png"], side=Side.right)
    assert found == {
        "000007.jpg": (RIGHT,), "b.png": (RIGHT, RIGHT), "c.png": (), "99": (RIGHT,)
    }  # fmt: skip
    assert boxes_of(tmp_path, record[:1], side=Side.left) == {"7": (LEFT,)}, "frames of a video"


def test_coco_data_sets_name_files_and_sides(tmp_path: Path) -> None:
    record = {
        "images": [{"id": 3, "file_name": "val/a.jpg"}, {"id": 4, "file_name": "val/b.jpg"}],
        "categories": [{"id": 1, "name": "Left Hand"}, {"id": 2, "name": "right_hand"}],
        "annotations": [
            {"image_id": 3, "category_id": 1, "bbox": XYWH},
            {"image_id": 3, "category_id": 2, "bbox": XYWH},
        ],
    }
    assert boxes_of(tmp_path, record, names=["a.jpg"]) == {"a.jpg": (LEFT, RIGHT), "b.jpg": ()}
    record["categories"] = []
    record["annotations"] = [
        {
            "image_id": 4, "bbox": [0, 0, 500, 900], "lefthand_box": XYWH, "lefthand_valid": True,
            "righthand_box": [0, 0, 0, 0], "righthand_valid": False, "lefthand_kpts": KEYPOINTS,
        }
    ]  # fmt: skip
    assert boxes_of(tmp_path, record, names=["b.jpg"])["b.jpg"] == (LEFT,)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ([{"image_id": None, "bbox": XYWH}], "annotation 0 has no image_id"),
        ([{"image_id": 1, "bbox": [1, "x", 2, 3]}], "box_xyxy must be four finite numbers"),
        ([{"image_id": 1}], "box_xyxy must be four finite numbers, got null"),
        ({"images": [], "annotations": [3]}, "annotation 0 has no image_id"),
    ],
)
def test_wrong_coco_is_one_sentence(tmp_path: Path, record: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        boxes_of(tmp_path, record)


def test_looser_boxes_are_scaled(joints_run: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.png", frame(2))
    tight, loose = (45.0, 30.0, 85.0, 70.0), (41.0, 26.0, 89.0, 74.0)
    options: list[dict[str, Any]] = [{"boxes": tight}, {"boxes": loose, "box_scale": 40 / 48}]
    found = []
    for i, one in enumerate(options):
        one["boxes"] = write_json(tmp_path / f"{i}.json", {"a.png": [a_box(xyxy=one["boxes"])]})
        record = predicted(joints_run, tmp_path / "a.png", tmp_path / str(i), **one)
        found.append(record["images"]["a.png"]["hands"][0])
    assert found[1]["box_xyxy"] == list(loose)
    np.testing.assert_allclose(found[0]["square_xyxy"], found[1]["square_xyxy"])
    np.testing.assert_allclose(found[0]["joints_3d"], found[1]["joints_3d"], atol=2e-6)


# --- the file's own camera ------------------------------------------------------------------------


def photo(millimetres: float | None, kind: str = "JPEG") -> bytes:
    image, exif = Image.fromarray(frame(0)), Image.Exif()
    if millimetres is not None:
        exif[0x010F] = "a maker"  # with none of its own PIL writes no EXIF into PNG
        exif.get_ifd(0x8769)[0xA405] = millimetres
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_focal_length_in_terms_of_film_is_a_field_of_view(kind: str) -> None:
    found = focal_px_of(photo(26, kind), (4000, 3000))
    assert found is not None
    diagonal = 2 * math.degrees(math.atan(math.hypot(4000, 3000) / 2 / found))
    assert diagonal == pytest.approx(79.5, abs=0.1)  # as lens tables have it for 26 mm


@pytest.mark.parametrize("millimetres", [None, 0, 60000])
def test_files_that_do_not_say_have_none(millimetres: float | None) -> None:
    assert focal_px_of(photo(millimetres), (128, 96)) is None
    assert focal_px_of(photo(26)[:60] + b"Exif torn", (128, 96)) is None


def test_the_camera_is_the_files_where_nothing_else_is_said(
    joints_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(photo(26))
    write(tmp_path / "images" / "b.png", frame(0))
    record = predicted(joints_run, tmp_path / "images", tmp_path / "out")["images"]
    assert [record[name]["camera"] for name in ("a.jpg", "b.png")] == ["exif", "assumed"]
    focal = 26 / math.hypot(36, 24) * math.hypot(128, 96)
    assert record["a.jpg"]["K"][0][0] == pytest.approx(focal)
    assert record["b.png"]["K"][0][0] == pytest.approx(64 / math.tan(math.radians(30)))
    K = Cameras(K=np.eye(3) * (100, 100, 1)).of(blank("a", (128, 96)))
    assert K[0, 0] == 100


# --- meshes ---------------------------------------------------------------------------------------


def brute_force(
    pixels: NDArray[np.float64], depth: NDArray[np.float64], value: NDArray[np.float64],
    faces: NDArray[np.int64], size_hw: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    covered, shown, near = np.zeros(size_hw), np.zeros(size_hw), np.full(size_hw, np.inf)
    for face in faces:
        corners = np.concatenate((pixels[face], np.ones((3, 1))), 1).T
        if abs(np.linalg.det(corners)) < 1e-12:
            continue
        for y in range(size_hw[0]):
            for x in range(size_hw[1]):
                weight = np.linalg.solve(corners, [x, y, 1])
                if (weight >= -1e-9).all() and weight @ depth[face] < near[y, x]:
                    near[y, x] = weight @ depth[face]
                    covered[y, x], shown[y, x] = 1, weight @ value[face]
    return covered, shown


def test_triangles_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-4, 20, (12, 2))
    depth, value = rng.uniform(0.3, 0.6, 12), rng.uniform(0, 1, 12)
    faces = np.concatenate((rng.integers(0, 12, (8, 3)), [[0, 0, 1]]))
    found = rasterise(pixels, depth, value, faces, (14, 17))
    for mine, expected in zip(
        found, brute_force(pixels, depth, value, faces, (14, 17)), strict=True
    ):
        np.testing.assert_allclose(mine, expected, atol=1e-9)
    assert 20 < found[0].sum() < 14 * 17


def square_at(depth: float, left: float, right: float, tilt: float = 0.0) -> Surface:
    corners = np.array([[left, 10], [right, 10], [right, 50], [left, 50]], float)
    vertices = np.concatenate((corners * depth / 100, np.full((4, 1), depth)), 1)
    vertices[:2, 2] += tilt
    faces = np.array([[0, 2, 1], [0, 3, 2]])  # seen from its outer side
    return Surface(vertices=vertices, pixels=corners, faces=faces)


def test_the_nearer_hand_hides_the_farther_one() -> None:
    image = np.full((60, 100, 3), 20, np.uint8)
    near, far = square_at(0.4, 10, 40, tilt=0.2), square_at(0.6, 30, 70)
    draw_surfaces(image, [near, far])
    flipped = np.full_like(image, 20)
    draw_surfaces(flipped, [far, near])
    np.testing.assert_array_equal(image, flipped)
    assert (image[:, 75:] == 20).all()
    assert (image[55:] == 20).all()
    alone = np.full_like(image, 20)
    draw_surfaces(alone, [near])
    np.testing.assert_array_equal(image[20:45, 12:38], alone[20:45, 12:38])
    assert (image[30, 35].astype(int) - image[30, 60]).min() > 5, "it looks up, to the light"


def test_meshes_out_of_sight_draw_nothing() -> None:
    image = np.full((60, 100, 3), 20, np.uint8)
    away = square_at(0.4, 400, 440)
    behind = Surface(vertices=away.vertices, pixels=np.full((4, 2), np.nan), faces=away.faces)
    for surfaces in ([], [away], [behind]):
        draw_surfaces(image, surfaces)
    assert (image == 20).all()


def test_meshes_as_glb_are_those_as_obj(trained: Trained, tmp_path: Path) -> None:
    write(tmp_path / "a.png", frame(0))
    found = {}
    for kind in MeshFormat:
        out = tmp_path / kind.name
        options: dict[str, Any] = {"meshes": True, "mesh_format": kind, "side": Side.left}
        record = predicted(trained.run, tmp_path / "a.png", out, **options)
        path = out / record["images"]["a.png"]["hands"][0]["mesh"]
        assert path.suffix == f".{kind.name}"
        found[kind] = trimesh.load_mesh(path, process=False)
    obj, glb = found[MeshFormat.obj], found[MeshFormat.glb]
    np.testing.assert_allclose(glb.vertices, obj.vertices * (1, -1, -1), atol=1e-5)
    np.testing.assert_array_equal(glb.faces, obj.faces)
    assert glb.volume == pytest.approx(obj.volume, rel=1e-3)
    assert glb.volume > 0, "faces look outwards"


# --- tables and videos ----------------------------------------------------------------------------


def test_joints_as_a_table_and_pictures_as_a_video(joints_run: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 5)
    given = {str(i): [a_box(), a_box("left")] for i in range(0, 5, 2)}
    options: dict[str, Any] = {"csv": True, "video": True, "every": 2}
    options["boxes"] = write_json(tmp_path / "b.json", given)
    record = predicted(joints_run, tmp_path / "v.mp4", tmp_path / "out", **options)
    with (tmp_path / "out" / "joints.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 21
    hand = record["images"]["2"]["hands"][1]
    mine = [row for row in rows if (row["image"], row["hand"]) == ("2", "1")]
    assert [row["joint"] for row in mine] == list(JOINT_NAMES)
    assert {row["side"] for row in mine} == {"left"}
    assert [[float(row[c]) for c in ("x_m", "y_m", "z_m")] for row in mine] == hand["joints_3d"]
    video = cv2.VideoCapture(str(tmp_path / "out" / "predictions.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    read, last = video.read()
    picture = cv2.imread(str(tmp_path / "out" / record["images"]["0"]["picture"]))
    assert read
    assert picture is not None
    assert np.abs(last.astype(int) - picture).mean() < 10
    with pytest.raises(ValueError, match="video=true needs a video"):
        main(config(joints_run, tmp_path / "out" / "pictures", video=True))


def test_a_video_that_does_not_fit_on_the_disk_gets_no_name(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(12)]
    rng = np.random.default_rng(0)
    for name in names:
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    lines: Any = SimpleNamespace(
        read=lambda: [("image", json.dumps({"picture": name}).encode()) for name in names]
    )
    path = tmp_path / "predictions.mp4"
    path.write_bytes(b"of last week")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(OSError, match=r"the video was not written whole: '.*predictions.mp4'"):
            write_frames(path, lines, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"of last week"
    assert not list(tmp_path.glob(".*"))
    write_frames(path, lines, 10)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 12
