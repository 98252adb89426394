"""The contact sheet: labels lie where the image shows them, and the text says what it must."""

import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
import zarr
from rich.console import Console

from model.mano.files import load_mano
from pipeline.store.errors import StoreError
from pipeline.store.reader import open_store
from preprocess.builder.build import build
from preprocess.builder.report.page import PAGE_FILE
from preprocess.config import BuildConfig, OnBadImage, ShowConfig
from preprocess.show.objects import (
    AXIS_RGB,
    GRASPED_RGB,
    OTHER_RGB,
    axes_px,
    contact_rgb,
    draw_vertices,
    load_shapes,
    outline,
)
from preprocess.show.sheet import LEFT_RGB, RIGHT_RGB, depth_rgb, legend, segmentation_rgb
from preprocess.show.show import choose_rows, describe, draw_row, main, show
from tests.pipeline.stores import relist
from tests.preprocess.datasets import FreihandTruth, decode, write_freihand, write_mano
from tests.preprocess.objects.object_store import BALL, BOX, object_store, pose

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def without_mano_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)


def make_store(truth: FreihandTruth, mano: Path | None = None) -> Path:
    config = BuildConfig(
        dataset="freihand",
        root=str(truth.root),
        out=str(truth.root.parent / "store.zarr"),
        mano=None if mano is None else str(mano),
        workers=1,
        on_bad_image=OnBadImage.flag,
    )
    return build(config, console=QUIET).path


def black_images(truth: FreihandTruth) -> None:
    for file in truth.root.glob("*/rgb/*.jpg"):
        cv2.imwrite(str(file), np.zeros((48, 64, 3), np.uint8))


def test_the_sheet_is_written_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(write_freihand(tmp_path))
    out = tmp_path / "new folder" / "sheet.png"
    assert main(ShowConfig(store=str(store), out=str(out), num=6, tile_px=128)) == 0
    sheet = cv2.imread(str(out))
    assert sheet is not None
    assert sheet.shape == (2 * (128 + 34) + 26, 3 * 128, 3)
    text = capsys.readouterr().out
    for word in (
        "freihand, 14 rows",
        "train 12",
        "no_mano 14",
        "joint set: freihand",
        "research only, non-commercial",
        "ICCV 2019",
        str(out),
    ):
        assert word in text


@pytest.mark.parametrize("tile_px", [64, 100, 640])
def test_joints_are_drawn_where_they_project(tmp_path: Path, tile_px: int) -> None:
    truth = write_freihand(tmp_path)
    black_images(truth)
    store = open_store(make_store(truth))
    row = 1  # version auto of pose 1
    pose = 1
    picture = draw_row(store, row, tile_px)[:tile_px].max(-1)
    scale = tile_px / 64
    assert not picture[: int(48 * scale)].min()  # black where nothing is drawn
    for x, y, z in truth.xyz[pose]:
        u, v, w = truth.K[pose] @ [x, y, z]
        column, line = (round((c / w + 0.5) * scale - 0.5) for c in (u, v))
        if 0 <= column < tile_px and 0 <= line < tile_px:
            assert picture[line, column] > 60


def test_vertices_are_drawn_only_with_the_mano_of_the_store(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path, mano=write_mano(tmp_path / "mano")["right"])
    write_mano(tmp_path / "other", seed=1)
    black_images(truth)
    store = make_store(truth, tmp_path / "mano")
    lit = {}
    for name in ("mano", "other", None):
        config = ShowConfig(
            store=str(store),
            out=str(tmp_path / f"{name}.png"),
            rows=[0],
            mano=None if name is None else str(tmp_path / name),
        )
        sheet = cv2.imread(str(show(config)), cv2.IMREAD_GRAYSCALE)
        assert sheet is not None
        lit[name] = int(np.count_nonzero(sheet[:240] > 250))
    assert lit["mano"] > lit["other"] + 100
    assert lit["other"] == lit[None]


def test_a_row_without_image_says_so(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path)
    (truth.root / "training" / "rgb" / "00000000.jpg").write_bytes(b"")
    store = open_store(make_store(truth))
    row = int(np.flatnonzero(store.label("official_idx") == 0)[0])
    whole, missing = draw_row(store, row + 1, 128), draw_row(store, row, 128)
    assert whole.shape == missing.shape == (128 + 34, 128, 3)
    assert (missing[:30, :, 0] == 48).mean() > 0.5  # grey, no picture


def test_rows_are_chosen_by_hand_or_by_seed(tmp_path: Path) -> None:
    path = make_store(write_freihand(tmp_path))
    store = open_store(path)

    def rows(**options: object) -> list[int]:
        return choose_rows(ShowConfig(store=str(path), **options), store)  # type: ignore[arg-type]

    assert rows(rows=[5, 0, 5]) == [5, 0, 5]
    assert rows(num=4, seed=1) == rows(num=4, seed=1)
    assert rows(num=4, seed=1) != rows(num=4, seed=2)
    assert rows(num=99) == list(range(14))
    assert set(rows(num=99, split="evaluation")) == set(store.split("evaluation").tolist())
    with pytest.raises(ValueError, match=r"rows must lie in 0..13, got \[14, -1\]"):
        rows(rows=[3, 14, -1])
    with pytest.raises(StoreError, match=r"has no split 'test'"):
        rows(split="test")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    path = make_store(write_freihand(tmp_path, num_unique=1))
    with pytest.raises(ValueError, match=r"split='val10' of store .* is empty"):
        show(ShowConfig(store=str(path), split="val10"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "sheet.pdf"}, "out must end in .png or .jpg, got 'sheet.pdf'"),
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"tile_px": 10}, "tile_px must be at least 64 and at most 8192, got 10"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShowConfig(**options)  # type: ignore[arg-type]


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    path = make_store(write_freihand(tmp_path))
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(OSError, match=r"Is a directory: .*sheet\.png'$"):
        show(ShowConfig(store=str(path), out=str(tmp_path / "sheet.png"), num=1))


# --- objects --------------------------------------------------------------------------------------

K_WIDE = np.array([[300.0, 0.0, 159.5], [0.0, 310.0, 119.5], [0.0, 0.0, 1.0]])
BLACK = np.zeros((48, 64, 3), np.uint8)
K_SMALL = np.array([[60.0, 0.0, 31.5], [0.0, 60.0, 23.5], [0.0, 0.0, 1.0]])


def opencv_pixels(points: np.ndarray, T: np.ndarray, K: np.ndarray) -> np.ndarray:
    turn, _ = cv2.Rodrigues(T[:, :3])
    pixels, _ = cv2.projectPoints(points.astype(np.float64), turn, T[:, 3], K, None)
    found: np.ndarray = pixels[:, 0]
    return found


def filled(contours: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size_hw, np.uint8)
    cv2.drawContours(mask, contours, -1, 1, -1)
    return mask.astype(bool)


def close_to(picture: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Return where a line of this colour is, drawn smoothed on black."""
    light = picture.max(-1, keepdims=True).astype(float)
    full = picture / np.maximum(light, 1) * max(rgb)
    close: np.ndarray = (light[..., 0] > 90) & (np.abs(full - rgb).max(-1) < 30)
    return close


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.5), (0.05, -0.03, 0.4), (0.3, 0.1, 0.6)])
def test_the_outline_of_a_box_is_the_hull_of_its_corners(place: tuple[float, float, float]) -> None:
    pixels = opencv_pixels(BOX.vertices, pose(place), K_WIDE)
    hull = cv2.convexHull(pixels.astype(np.float32))
    expected = np.zeros((240, 320), np.uint8)
    cv2.fillConvexPoly(expected, np.rint(hull).astype(np.int32), 1)
    contours = outline(pixels, BOX.faces, (240, 320))
    found = filled(contours, (240, 320))
    assert (found & (expected > 0)).sum() / (found | (expected > 0)).sum() > 0.99
    for x, y in contours[0][:, 0].tolist():
        if 0 <= x < 320 and 0 <= y < 240:
            assert abs(cv2.pointPolygonTest(hull, (x, y), measureDist=True)) <= 1.0


def test_the_outline_of_many_small_faces_is_that_of_the_ball() -> None:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.05)
    T = np.column_stack([np.eye(3), [0.0, 0.0, 0.5]])
    pixels = opencv_pixels(ball.vertices, T, K_WIDE)
    [contour] = outline(pixels, ball.faces, (240, 320))
    radius = 0.05 / np.sqrt(0.5**2 - 0.05**2)  # of the tangent cone, over the focal length
    x, y = (contour[:, 0] - [159.5, 119.5]).T
    np.testing.assert_allclose(np.hypot(x / 300, y / 310), radius, atol=1.0 / 300)


def test_a_hole_is_outlined_too() -> None:
    ring = trimesh.creation.torus(0.05, 0.01)
    pixels = opencv_pixels(ring.vertices, np.column_stack([np.eye(3), [0, 0, 0.5]]), K_WIDE)
    sizes = sorted(np.ptp(c[:, 0, 0]) for c in outline(pixels, ring.faces, (240, 320)))
    assert len(sizes) == 2
    assert sizes[0] == pytest.approx(2 * 300 * 0.04 / 0.5, abs=2)
    assert sizes[1] == pytest.approx(2 * 300 * 0.06 / 0.5, abs=2)


def test_what_is_not_in_the_picture_has_no_outline() -> None:
    pixels = opencv_pixels(BOX.vertices, pose((0.0, 0.0, 0.5)), K_WIDE)
    assert outline(pixels + 1000.0, BOX.faces, (240, 320)) == []
    assert outline(pixels * 1e12, BOX.faces, (240, 320)) == []
    assert outline(np.full((8, 2), np.nan), BOX.faces, (240, 320)) == []
    whole = filled(outline(pixels, BOX.faces, (240, 320)), (240, 320))
    pixels[0] = np.nan  # takes the faces that touch the vertex, leaves the others
    rest = filled(outline(pixels, BOX.faces, (240, 320)), (240, 320))
    assert 0 < rest.sum() <= whole.sum()
    assert not (rest & ~whole).any()


def test_a_border_is_no_outline() -> None:
    big = np.array([[-500.0, -500], [900, -500], [900, 900], [-500, 900]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    [contour] = outline(big, faces, (240, 320))
    x, y = contour[:, 0].T
    inside = (x >= -5) & (x < 325) & (y >= -5) & (y < 245)
    assert not inside.any()


def test_axes_end_where_the_camera_sees_them() -> None:
    T = pose((0.02, -0.01, 0.5))
    ends = axes_px(T, 0.07, K_WIDE)
    for end, point in zip(ends, [(0, 0, 0), (0.07, 0, 0), (0, 0.07, 0), (0, 0, 0.07)], strict=True):
        u, v, w = K_WIDE @ T @ [*point, 1.0]
        assert end == pytest.approx([u / w, v / w])
    np.testing.assert_allclose(ends, opencv_pixels(np.eye(4, 3, -1) * 0.07, T, K_WIDE), atol=1e-9)
    assert np.isnan(axes_px(pose((0.0, 0.0, -0.5)), 0.07, K_WIDE)).all()


@pytest.fixture(scope="module")
def black_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("black") / "s.zarr"
    return object_store(path, image=BLACK, hands=False, K=K_SMALL)


PLACES = ((BOX, (0.02, 0.01, 0.6), GRASPED_RGB), (BALL, (-0.16, -0.02, 0.7), OTHER_RGB))
"""What row 0 shows."""


def on_tile(points: np.ndarray, place: tuple[float, float, float], tile_px: int) -> np.ndarray:
    return (opencv_pixels(points, pose(place), K_SMALL) + 0.5) * (tile_px / 64) - 0.5


@pytest.mark.parametrize("tile_px", [320, 500])
def test_outlines_are_drawn_where_objects_project(black_store: Path, tile_px: int) -> None:
    store = open_store(black_store)
    shapes = load_shapes(store, [0])
    assert sorted(shapes) == [0, 1]
    without_axes = {i: dataclasses.replace(s, diameter_m=np.nan) for i, s in shapes.items()}
    picture = draw_row(store, 0, tile_px, shapes=without_axes)[: tile_px * 48 // 64]
    for shape, place, rgb in PLACES:
        hull = cv2.convexHull(on_tile(shape.vertices, place, tile_px).astype(np.float32))
        drawn = np.argwhere(close_to(picture, rgb)).tolist()
        away = [cv2.pointPolygonTest(hull, (x, y), measureDist=True) for y, x in drawn]
        assert len(drawn) > 0.6 * cv2.arcLength(hull, closed=True)
        assert np.abs(away).max() < 4  # half a line of 4 px, rounding and a corner
        middle = (np.min(drawn, axis=0) + np.max(drawn, axis=0)) / 2
        np.testing.assert_allclose(middle[::-1], (hull.min(0)[0] + hull.max(0)[0]) / 2, atol=1.0)


@pytest.mark.parametrize("tile_px", [320, 500])
def test_axes_are_drawn_where_they_project(black_store: Path, tile_px: int) -> None:
    store = open_store(black_store)
    picture = draw_row(store, 0, tile_px, shapes=load_shapes(store, [0]))
    for shape, place, _ in PLACES:
        ends = on_tile(shape.diameter_m / 3 * np.eye(3), place, tile_px)
        for rgb, (x, y) in zip(AXIS_RGB, np.rint(ends).astype(int), strict=True):
            assert close_to(picture[y - 2 : y + 3, x - 2 : x + 3], rgb).any()


def test_the_grasped_object_has_the_thicker_outline(tmp_path: Path) -> None:
    path = object_store(tmp_path / "s.zarr", image=BLACK, hands=False, K=K_SMALL)
    grasped = draw_row(open_store(path), 0, 320, shapes={0: BOX})
    zarr.open_array(path / "labels" / "grasped_object", mode="r+")[:] = -1
    relist(path)
    other = draw_row(open_store(path), 0, 320, shapes={0: BOX})
    assert close_to(grasped, GRASPED_RGB).sum() > 1.4 * close_to(other, OTHER_RGB).sum() > 0


def test_objects_that_cannot_be_seen_leave_no_mark(black_store: Path) -> None:
    store = open_store(black_store)
    shapes = load_shapes(store, range(6))
    for row in (2, 4, 5):  # no pose, off the picture, no object
        np.testing.assert_array_equal(
            draw_row(store, row, 320, shapes=shapes), draw_row(store, row, 320)
        )
    np.testing.assert_array_equal(  # behind the camera
        draw_row(store, 3, 320, shapes={0: BOX}), draw_row(store, 3, 320)
    )
    through = draw_row(store, 3, 320, shapes={1: BALL})  # through the plane of the camera
    assert (through != draw_row(store, 3, 320)).any()


def test_a_store_without_shapes_is_drawn_without_them(tmp_path: Path) -> None:
    path = object_store(tmp_path / "s.zarr", objects=())
    whole = show(ShowConfig(store=str(path), out=str(tmp_path / "a.png"), rows=[0]))
    shutil.rmtree(path / "objects", ignore_errors=True)  # written before there were objects
    relist(path)
    store = open_store(path)
    assert load_shapes(store, [0, 1]) == {}
    again = show(ShowConfig(store=str(path), out=str(tmp_path / "b.png"), rows=[0]))
    assert whole.read_bytes() == again.read_bytes()


def test_the_description_names_objects_and_report(tmp_path: Path) -> None:
    path = object_store(tmp_path / "s.zarr")
    assert "report:" not in describe(open_store(path))
    (path / PAGE_FILE).write_text("page")
    text = describe(open_store(path))
    assert "objects: box, ball" in text
    assert f"report: {path / PAGE_FILE}" in text


# --- contact --------------------------------------------------------------------------------------


def test_near_is_hot_and_far_is_cold() -> None:
    red, _, blue = contact_rgb(np.arange(256, dtype=np.uint8)).astype(int).T
    assert (np.diff(red) <= 0).all()
    assert (np.diff(blue) >= 0).all()
    assert red[0] - blue[0] > 200
    assert blue[255] - red[255] > 200
    assert red[12] - red[0] < red[254] - red[242] < 0  # 3 mm near contact weigh more than far off


def test_the_nearest_vertex_is_on_top() -> None:
    pixels = np.full((778, 2), np.nan)
    pixels[[3, 100, 500]] = [20.0, 20.0]
    distance = np.full(778, 255, np.uint8)
    distance[100] = 0
    picture = np.zeros((40, 40, 3), np.uint8)
    draw_vertices(picture, pixels, distance)
    assert picture[20, 20].tolist() == contact_rgb(np.zeros(1, np.uint8))[0].tolist()
    draw_vertices(picture, pixels, None)
    assert picture[20, 20].tolist() == [255, 255, 255]


def test_hands_are_coloured_by_contact_where_it_is_known(tmp_path: Path) -> None:
    arrays = write_mano(tmp_path / "mano")["right"]
    mano = load_mano(tmp_path / "mano")
    right = np.array([True, False])
    theta, beta, transl = np.zeros((2, 48)), np.zeros((2, 10)), np.tile([0.0, 0.0, 0.5], (2, 1))
    distance = np.full((2, 778), 255)
    distance[0, 7] = 0
    vertex = decode(arrays, theta[0], beta[0])[7] + transl[0]
    u, v, w = K_SMALL @ vertex
    x, y = ((c / w + 0.5) * 5 - 0.5 for c in (u, v))
    path = object_store(
        tmp_path / "s.zarr", image=BLACK, hands=False, K=K_SMALL, theta=theta, beta=beta,
        transl=transl, has_mano=right, has_beta=right, has_contact=right,
        contact_dist=distance, mano_sha256=mano.sha256,
    )  # fmt: skip
    picture = draw_row(open_store(path), 5, 320, mano)
    assert picture[round(y), round(x)].tolist() == [255, 40, 0]
    assert close_to(picture[:240], (40, 120, 255)).sum() > 100
    zarr.open_array(path / "labels" / "has_contact", mode="r+")[:] = False
    relist(path)
    picture = draw_row(open_store(path), 5, 320, mano)
    assert picture[round(y), round(x)].tolist() == [255, 255, 255]
    assert not close_to(picture[:240], (40, 120, 255)).any()


# --- the sheet ------------------------------------------------------------------------------------


def test_depth_and_segmentation_stand_below_the_frame(tmp_path: Path) -> None:
    depth = np.tile(np.linspace(500, 900, 64).astype(np.uint16), (48, 1))
    segmentation = np.zeros((48, 64), np.uint8)
    segmentation[:24, :32], segmentation[24:, 32:] = 255, 254
    pictures: dict[str, np.ndarray] = {"depth_mm": depth, "segmentation": segmentation}
    path = object_store(tmp_path / "s.zarr", image=BLACK, hands=False, pictures=pictures)
    picture = draw_row(open_store(path), 5, 320)
    assert picture.shape == (320 + 120 + 34, 320, 3)
    strip = picture[320:440]
    assert strip[30, 160 + 40].tolist() == list(RIGHT_RGB)
    assert strip[90, 160 + 120].tolist() == list(LEFT_RGB)
    assert strip[30, 160 + 120].tolist() == [0, 0, 0]
    assert int(strip[60, 20, 0]) > int(strip[60, 20, 2])  # near is warm
    assert int(strip[60, 130, 0]) < int(strip[60, 130, 2])


def test_unknown_depth_is_black() -> None:
    depth = np.array([[0, 700], [800, 0]], np.uint16)
    assert (depth_rgb(depth).max(-1) == 0).tolist() == [[True, False], [False, True]]
    assert not depth_rgb(np.zeros((2, 2), np.uint16)).any()


def test_every_segment_has_its_own_colour() -> None:
    ids = np.array([[0, *range(1, 11), 254, 255]], np.uint8)
    assert len(np.unique(segmentation_rgb(ids)[0], axis=0)) == 13


@pytest.mark.parametrize("width", [64, 128, 320, 1920])
def test_the_legend_fits_any_sheet(width: int) -> None:
    strip = legend(width, objects=True, contact=True, pictures=["depth_mm"])
    short = legend(width, objects=False, contact=False, pictures=[])
    assert strip.shape[1] == short.shape[1] == width
    assert len(strip) >= len(short)
    for rgb in (RIGHT_RGB, LEFT_RGB, GRASPED_RGB, OTHER_RGB, *AXIS_RGB):
        assert (strip == rgb).all(-1).any()
    assert not (short == GRASPED_RGB).all(-1).any()
