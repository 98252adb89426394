"""Stores of ARCTIC's ``cropped_images`` against stores of its ``images``, crops made with PIL."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipeline.store.reader import Store, open_store
from preprocess.builder.build import build
from preprocess.builder.verify import verify
from preprocess.config import BuildConfig, ImageConfig, OnBadImage, Region, VerifyConfig
from preprocess.records import SourceError
from preprocess.sample.arctic.scene import BORDER, VIEWS, image_path, plans, truth_of
from preprocess.sources.arctic.crop import crop_affines, ego_affine
from preprocess.sources.arctic.source import open_source
from tests.conftest import SampleStore
from tests.preprocess.sources.arctic.crops import cropped, scaled, write_cropped
from tests.preprocess.sources.arctic.tree import write_meta

SEED, NUM = 3, 54  # of tests.conftest's sample
AGREE_PX = 0.05
QUIET = Console(quiet=True)


# --- where PIL puts pixels ------------------------------------------------------------------------


def blobs(centres: np.ndarray, size_wh: tuple[int, int], sigma: float) -> Image.Image:
    """Return an image with a round spot at each centre."""
    x, y = np.arange(size_wh[0]), np.arange(size_wh[1])
    picture = np.zeros(size_wh[::-1])
    for u, v in centres:
        picture += np.outer(
            np.exp(-0.5 * ((y - v) / sigma) ** 2), np.exp(-0.5 * ((x - u) / sigma) ** 2)
        )
    return Image.fromarray(np.round(250 * picture).astype(np.uint8))


def centroid(image: Image.Image, near: np.ndarray, reach: int) -> np.ndarray:
    """Return the centre of mass of the spot near a place."""
    u, v = np.round(near).astype(int)
    part = np.asarray(image, float)[v - reach : v + reach + 1, u - reach : u + reach + 1]
    y, x = np.mgrid[v - reach : v + reach + 1, u - reach : u + reach + 1]
    return np.array([(x * part).sum() / part.sum(), (y * part).sum() / part.sum()])


SPOTS = np.array([[500.3, 700.8], [900.0, 1200.5], [700.6, 1000.1], [560.2, 1290.7]])


@pytest.mark.parametrize(
    ("cx", "cy", "s"),
    [
        (700.0, 1000.0, 3.0),  # 900 pixels made 1000
        (700.4, 1000.3, 6.6666665),  # 2000 made 1000, over the left edge
        (733.25, 1001.75, 4.1),
        (720.5, 991.5, 3.0),  # edges at halves
    ],
)
def test_spots_of_a_crop_are_where_the_affine_says(cx: float, cy: float, s: float) -> None:
    square = np.float32(cx), np.float32(cy), np.float32(s)
    image = cropped(blobs(SPOTS, (2000, 2800), 6.0), square)
    A = crop_affines(np.array([[cx, cy, 200 * s]]))[0]
    for spot in SPOTS:
        expected = A[:, :2] @ spot + A[:, 2]
        assert np.abs(centroid(image, expected, 30) - expected).max() < AGREE_PX


def test_spots_of_the_scaled_image_are_where_the_affine_says() -> None:
    spots = np.array([[500.3, 700.8], [1900.0, 1200.5], [2300.6, 1000.1], [60.2, 1890.7]])
    image = scaled(blobs(spots, (2800, 2000), 9.0))
    assert image.size == (840, 600)
    A = ego_affine(np.array([2800.0, 2000.0]))
    for spot in spots:
        expected = A[:, :2] @ spot + A[:, 2]
        assert np.abs(centroid(image, expected, 14) - expected).max() < AGREE_PX


# --- stores ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The same sample as images and as cropped images."""

    full: Path
    crops: Path
    from_full: Store
    from_crops: Store


def config_of(root: Path, out: Path) -> BuildConfig:
    return BuildConfig(
        dataset="arctic",
        root=str(root),
        out=str(out),
        mano=str(root / "mano"),
        workers=1,
        on_bad_image=OnBadImage.flag,
    )


@pytest.fixture(scope="module")
def pair(arctic: SampleStore, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    crops = tmp_path_factory.mktemp("arctic") / "crops"
    objects = {}
    for plan in plans(SEED, NUM):
        for view in range(VIEWS):
            for frame in range(plan.num_frames):
                true = truth_of(SEED, plan, view, frame)
                points = np.concatenate([true.lid, true.base]) @ true.K.T
                objects[image_path(plan, view, frame)] = points[:, :2] / points[:, 2:]
    write_cropped(crops, arctic.root, objects)
    out = build(config_of(crops, crops.parent / "crops.zarr"), console=QUIET).path
    return Pair(
        full=arctic.root,
        crops=crops,
        from_full=open_store(arctic.store),
        from_crops=open_store(out),
    )


def projected(store: Store, row: int) -> np.ndarray:
    """Return the joints of a row in the pixels of the store, [42, 2]."""
    points = store.label("joints_3d")[row].reshape(-1, 3).astype(np.float64)
    pixels = points @ store.label("K")[row].astype(np.float64).T
    return np.asarray(pixels[:, :2] / pixels[:, 2:])


def picture(store: Store, row: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(store.jpeg(row), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image.astype(np.float32)


def raw_from_stored(store: Store, row: int) -> np.ndarray:
    A = store.label("A_stored_from_raw")[row].astype(np.float64)
    return np.asarray(cv2.invertAffineTransform(A))


def labelled(store: Store) -> list[int]:
    return np.flatnonzero(store.label("has_joints").any(-1) & store.label("sample_ok")).tolist()


def largest_difference_px(full: Store, crops: Store) -> float:
    """Return how far joints lie apart in official pixels."""
    largest = 0.0
    for row in labelled(full):
        places = []
        for store in (full, crops):
            A = raw_from_stored(store, row)
            places.append(projected(store, row) @ A[:, :2].T + A[:, 2])
        largest = max(largest, float(np.abs(places[0] - places[1]).max()))
    return largest


def inside(store: Store, row: int) -> np.ndarray:
    """Return which joints are in the picture."""
    pixels, (height, width) = projected(store, row), store.image_index.size_hw[row]
    return np.asarray(((pixels >= -0.5) & (pixels <= [width - 0.5, height - 0.5])).all(-1))


def test_joints_are_at_the_same_official_pixels(pair: Pair) -> None:
    full, crops = pair.from_full, pair.from_crops
    assert len(labelled(full)) == len(labelled(crops)) > 50
    assert largest_difference_px(full, crops) < AGREE_PX
    sizes = crops.image_index.size_hw
    on_head = crops.label("camera_idx") == crops.attributes.tables["camera"].index("0")
    assert set(map(tuple, sizes[~on_head & crops.label("sample_ok")].tolist())) == {(1000, 1000)}
    assert set(map(tuple, sizes[on_head & crops.label("sample_ok")].tolist())) == {(60, 84)}


def test_labels_without_pixels_are_the_same(pair: Pair) -> None:
    full, crops = pair.from_full, pair.from_crops
    for name in ("joints_3d", "object_pose", "official_valid", "official_idx", "contact_dist"):
        np.testing.assert_array_equal(full.label(name), crops.label(name), err_msg=name)
    for name in full.attributes.found_counts:
        np.testing.assert_array_equal(full.split(name), crops.split(name))
    assert crops.attributes.extra["notes"]["images"] == "cropped_images"


def test_boxes_move_with_the_pixels(pair: Pair) -> None:
    full, crops = pair.from_full, pair.from_crops
    for row in labelled(full):
        A = raw_from_stored(crops, row)
        for name in ("bbox_xyxy", "object_bbox_xyxy"):
            theirs = crops.label(name)[row].reshape(-1, 2).astype(np.float64)
            moved = theirs @ A[:, :2].T + A[:, 2]
            np.testing.assert_allclose(
                moved, full.label(name)[row].reshape(-1, 2), atol=AGREE_PX, err_msg=name
            )


@pytest.mark.parametrize(("on_head", "step"), [(False, 0.25), (True, 0.5)])
def test_the_picture_around_a_joint_is_the_same(pair: Pair, *, on_head: bool, step: float) -> None:
    """Of patches moved by -2 to 2 steps against each other, those that are not moved agree best."""
    full, crops = pair.from_full, pair.from_crops
    moves = [(i * step, j * step) for i in range(-2, 3) for j in range(-2, 3)]
    error, agreement = dict.fromkeys(moves, 0.0), []
    zero = full.attributes.tables["camera"].index("0")
    for row in labelled(full):
        if (full.label("camera_idx")[row] == zero) != on_head:
            continue
        # The smaller picture has lost detail, so the larger one loses it too.
        a = cv2.GaussianBlur(picture(full, row), (0, 0), 2.0 if on_head else 0.7)
        b = picture(crops, row)
        A = crops.label("A_stored_from_raw")[row].astype(np.float64)
        for place in projected(full, row)[::4]:
            y, x = np.mgrid[-7:8, -7:8] + np.round(place[::-1])[:, None, None]
            if not (9 < place[0] < a.shape[1] - 9 and 9 < place[1] < a.shape[0] - 9):
                continue
            own = cv2.remap(a, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
            for dx, dy in moves:
                u = A[0, 0] * (x + dx) + A[0, 1] * (y + dy) + A[0, 2]
                v = A[1, 0] * (x + dx) + A[1, 1] * (y + dy) + A[1, 2]
                seen = cv2.remap(b, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR)
                error[dx, dy] += float(((seen - own) ** 2).sum())
                if dx == dy == 0 and own.std() > 15:
                    agreement.append(np.corrcoef(seen.ravel(), own.ravel())[0, 1])
    assert len(agreement) > 20
    assert np.median(agreement) > 0.95
    assert min(error, key=lambda move: error[move]) == (0.0, 0.0)


def test_what_has_no_labels_has_pixels_of_an_unknown_place(pair: Pair) -> None:
    store = pair.from_crops
    hidden = ~store.label("has_joints").any(-1) & store.label("sample_ok")
    assert hidden.any()
    assert np.isnan(store.label("A_stored_from_raw")[hidden]).all()
    assert np.isnan(store.label("K")[hidden]).all()
    assert np.isfinite(store.label("A_stored_from_raw")[labelled(store)]).all()


def test_a_crop_of_the_crop_keeps_the_official_pixels(pair: Pair, tmp_path: Path) -> None:
    image = ImageConfig(region=Region.hand_object, margin=1.2, max_px=160)
    config = replace(config_of(pair.crops, tmp_path / "small.zarr"), image=image)
    store = open_store(build(config, console=QUIET).path)
    assert largest_difference_px(pair.from_full, store) < AGREE_PX
    still = store.image_index.size_hw.max(1) > 100
    assert store.image_index.size_hw[still].max() == 160
    assert still.sum() > 50
    for row in labelled(store):  # what was in the picture still is
        before, now = (inside(s, row) for s in (pair.from_crops, store))
        assert before.any()
        assert now[before].all()


def test_a_store_of_crops_verifies_against_its_files(pair: Pair) -> None:
    store, root = str(pair.from_crops.path), pair.crops
    report = verify(
        VerifyConfig(store=store, root=str(root), mano=str(root / "mano")), console=QUIET
    )
    assert not report.problems


# --- which folder ---------------------------------------------------------------------------------


def test_images_are_taken_where_both_are_there(pair: Pair, tmp_path: Path) -> None:
    for name in ("raw_seqs", "meta", "images"):
        (tmp_path / name).symlink_to(pair.full / name)
    (tmp_path / "cropped_images").symlink_to(pair.crops / "cropped_images")
    source = open_source(tmp_path, None)
    assert source.rows.image[0].startswith("images/")
    assert source.notes["images"] == "images; cropped_images is there too and was not read"


def test_a_folder_with_backgrounds_alone_is_no_folder_of_images(pair: Pair, tmp_path: Path) -> None:
    for name in ("raw_seqs", "meta", "cropped_images"):
        (tmp_path / name).symlink_to(pair.crops / name)
    (tmp_path / "images" / "backgrounds").mkdir(parents=True)
    source = open_source(tmp_path, None)
    assert source.rows.image[0] == f"cropped_images/s01/box_use_01/0/{BORDER:05d}.jpg"


def test_neither_folder_is_one_sentence(tmp_path: Path) -> None:
    write_meta(tmp_path, {"s01": 0})
    (tmp_path / "raw_seqs").mkdir()
    with pytest.raises(
        SourceError,
        match=r"^arctic: \S+ has no images/ or cropped_images/; expected one of them beside "
        r"raw_seqs and meta, unpack it or point root= at the right folder$",
    ):
        open_source(tmp_path, None)
