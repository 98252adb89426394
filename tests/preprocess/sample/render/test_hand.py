from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocess.sample.freihand.write import Scene, draw_scene
from preprocess.sample.hand.skin import draw_skin
from preprocess.sample.render.background import draw_background, draw_green_screen, draw_studio
from preprocess.sample.render.hand import (
    Picture,
    Sight,
    arm_faces,
    compose,
    draw_lights,
    draw_wrist_bend,
    render_hands,
    with_forearm,
)

SIZE = (224, 224)


def sight_of(scene: Scene, seed: int) -> Sight:
    rng = np.random.default_rng(seed)
    return Sight(
        vertices=scene.vertices,
        is_right=True,
        root_rotmat=Rotation.from_rotvec(scene.theta[:3]).as_matrix(),
        skin=draw_skin(rng),
        wrist_bend=draw_wrist_bend(rng),
    )


def silhouette(sight: Sight, K: np.ndarray) -> np.ndarray:
    """Coverage by filling every projected triangle with OpenCV at eight times the resolution."""
    points = with_forearm(sight) @ K.T
    pixel = points[:, :2] / points[:, 2:]
    canvas = np.zeros((SIZE[0] * 8, SIZE[1] * 8), dtype=np.uint8)
    fine = (pixel + 0.5) * 8 - 0.5
    for face in arm_faces("right"):
        cv2.fillConvexPoly(canvas, np.round(fine[face]).astype(np.int32), 255)
    small = cv2.resize(canvas, SIZE[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float64) / 255.0


def centroid(cover: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.asarray(np.array([(cover * columns).sum(), (cover * rows).sum()]) / cover.sum())


@pytest.mark.parametrize("seed", range(3))
def test_coverage_equals_the_projected_silhouette(seed: int) -> None:
    scene = draw_scene(seed, "training", 0)
    sight = sight_of(scene, seed)
    cover = render_hands([sight], scene.K, SIZE, draw_lights(np.random.default_rng(seed))).cover
    expected = silhouette(sight, scene.K)
    # Four samples per pixel against 64: an edge pixel is off by an eighth at the most, on average.
    assert np.abs(cover - expected).mean() < 0.005
    # OpenCV fills the outline too, a sixteenth of a pixel; an offset of half a sample is 0.25.
    np.testing.assert_allclose(centroid(cover), centroid(expected), atol=0.15)


def test_a_left_hand_renders_as_the_mirror_image() -> None:
    scene = draw_scene(4, "training", 0)
    right = sight_of(scene, 4)
    mirror = np.diag([-1.0, 1.0, 1.0])
    left = Sight(
        vertices=scene.vertices @ mirror,
        is_right=False,
        root_rotmat=mirror @ right.root_rotmat @ mirror,
        skin=right.skin,
        wrist_bend=right.wrist_bend,
    )
    K_mirrored = scene.K.copy()
    K_mirrored[0, 2] = SIZE[1] - 1 - scene.K[0, 2]
    lights = draw_lights(np.random.default_rng(4))
    first = render_hands([right], scene.K, SIZE, lights)
    turned = replace(lights, key=mirror @ lights.key, fill=mirror @ lights.fill)
    second = render_hands([left], K_mirrored, SIZE, turned)
    # Pixels whose sample lies exactly on an edge may fall to either side.
    assert np.abs(first.cover - second.cover[:, ::-1]).mean() < 1e-3
    # The shadow map's grid is not mirrored with the hand.
    inside = first.cover > 0.999
    assert np.abs(first.rgb - second.rgb[:, ::-1])[inside].mean() < 3.0


def test_the_nearer_hand_hides_the_farther_one() -> None:
    scene = draw_scene(6, "training", 0)
    near = sight_of(scene, 1)
    behind = scene.vertices + scene.joints_3d[9] / scene.joints_3d[9, 2] * 0.3
    far = Sight(
        vertices=behind,
        is_right=True,
        root_rotmat=near.root_rotmat,
        skin=draw_skin(np.random.default_rng(99)),
        wrist_bend=near.wrist_bend,
    )
    # Without the key light there are no shadows, which the far hand would change.
    lights = replace(draw_lights(np.random.default_rng(2)), key_rgb=np.zeros(3), gloss=0.0)
    alone = render_hands([near], scene.K, SIZE, lights)
    for order in ([near, far], [far, near]):
        both = render_hands(order, scene.K, SIZE, lights)
        assert (both.cover >= alone.cover - 1e-6).all()
        inside = alone.cover > 0.999
        np.testing.assert_allclose(both.rgb[inside], alone.rgb[inside], atol=0.01)
        assert (both.cover > alone.cover + 0.5).any()


def test_exposure_is_reasonable() -> None:
    means = []
    for seed in range(12):
        scene = draw_scene(seed, "training", 1)
        picture = render_hands(
            [sight_of(scene, seed)], scene.K, SIZE, draw_lights(np.random.default_rng(seed))
        )
        means.append(picture.rgb[picture.cover > 0.99].mean())
    assert min(means) > 15.0
    assert max(means) < 250.0
    assert np.std(means) > 15.0  # skins and lights vary


def test_backgrounds_are_images_and_vary() -> None:
    for draw in (draw_background, draw_green_screen, draw_studio):
        first, again, other = (draw(np.random.default_rng(seed), (60, 80)) for seed in (1, 1, 2))
        assert first.shape == (60, 80, 3)
        assert first.dtype == np.float32
        assert first.min() >= 0
        assert first.max() <= 255
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).mean() > 1.0


def test_compose_blends_by_coverage() -> None:
    cover = np.full((4, 4), 0.25, dtype=np.float32)
    picture = Picture(rgb=np.full((4, 4, 3), 40.0, dtype=np.float32), cover=cover)
    background = np.full((4, 4, 3), 100.0, dtype=np.float32)
    image = compose(picture, background, np.random.default_rng(0), noise=False)
    np.testing.assert_array_equal(image, 115)
