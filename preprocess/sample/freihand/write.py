"""Synthetic FreiHAND: the official files, filled with rendered synthetic hands.

Layout as in ``FreiHAND_pub_v2``: ``training/rgb`` holds every pose four times
(``file_id = idx + num * version``), ``training/mask`` the masks of version 0, the
``training_*.json`` files one row per pose; ``evaluation`` one image per pose. Version 0 stands
before a green screen; versions 1 to 3 composite the same rendering over other backgrounds with
other tints. Right hands only.

``preprocess.sample.hand.pose`` documents the sampling ranges.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from model.hand import MIDDLE_MCP, STANDARD_FROM_MANO21, TIP_VERTICES
from model.mano.files import mano_forward
from preprocess.sample.hand.mesh import stand_in_model
from preprocess.sample.hand.pose import draw_hand, draw_orientation
from preprocess.sample.hand.skin import draw_skin
from preprocess.sample.picture_file import save_picture
from preprocess.sample.render.background import draw_background, draw_green_screen
from preprocess.sample.render.hand import (
    Picture,
    Sight,
    compose,
    draw_lights,
    draw_wrist_bend,
    render_hands,
)

SIZE_PX: Final = 224
NUM_VERSIONS: Final = 4
SPLITS: Final = ("training", "evaluation")
FIELDS: Final = ("K", "mano", "xyz", "scale", "verts")
_MARGIN_PX: Final = 4.0
_JPEG: Final = (
    *(cv2.IMWRITE_JPEG_QUALITY, 90),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A sampled right hand and its camera. Metres, radians, camera frame.

    ``theta`` [48] absolute axis-angle, ``beta`` [10], ``transl`` [3], ``K`` [3, 3] pixels,
    ``vertices`` [778, 3], ``joints_3d`` [21, 3] in standard order (FreiHAND's joint convention).
    """

    theta: np.ndarray
    beta: np.ndarray
    transl: np.ndarray
    K: np.ndarray
    vertices: np.ndarray
    joints_3d: np.ndarray


def draw_scene(seed: int, split: str, idx: int) -> Scene:
    """Sample scene ``idx`` of ``split``; a pure function of its arguments."""
    rng = _stream(seed, split, idx, 0)
    hand = draw_hand(rng)
    root = Rotation.from_matrix(draw_orientation(rng)).as_rotvec()
    theta = np.concatenate([root, hand.fingers.ravel()])
    model = stand_in_model("right")
    found, _ = mano_forward(model, theta[None], hand.beta[None], np.zeros((1, 3)))
    centred = found[0]
    K, transl = _draw_camera(rng, centred, regress_joints(centred)[MIDDLE_MCP])
    vertices = centred + transl
    return Scene(
        theta=theta,
        beta=hand.beta,
        transl=transl,
        K=K,
        vertices=vertices,
        joints_3d=regress_joints(vertices),
    )


def regress_joints(vertices: np.ndarray) -> np.ndarray:
    """Regress FreiHAND's 21 joints [21, 3] in standard order from posed vertices [778, 3]."""
    joints = stand_in_model("right").J_regressor @ vertices
    tips = vertices[list(TIP_VERTICES["freihand"].right)]
    return np.concatenate([joints, tips])[list(STANDARD_FROM_MANO21)]


def _stream(seed: int, split: str, idx: int, part: int) -> np.random.Generator:
    """Return the random generator for one part of one sample."""
    return np.random.default_rng([seed, SPLITS.index(split), idx, part])


def _draw_camera(
    rng: np.random.Generator, vertices: np.ndarray, root: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sample ``K`` and a translation that puts the whole hand into the image."""
    distance = np.exp(rng.uniform(np.log(0.45), np.log(0.95)))
    wanted = rng.uniform(0.50, 0.85) * SIZE_PX
    principal = SIZE_PX / 2 - 0.5 + rng.normal(0.0, 4.0, 2)
    place = rng.uniform(-1.0, 1.0, 2)
    transl = np.array([0.0, 0.0, distance]) - root
    # The projection changes a little as the hand moves off the axis: three rounds converge.
    for _ in range(3):
        moved = vertices + transl
        rays = moved[:, :2] / moved[:, 2:]
        low, high = rays.min(0), rays.max(0)
        focal = wanted / float((high - low).max())
        slack = np.maximum((SIZE_PX - (high - low) * focal) / 2 - _MARGIN_PX, 0.0)
        centre = SIZE_PX / 2 - 0.5 + place * slack
        shift = (centre - principal) / focal - (low + high) / 2
        transl[:2] += shift * distance
    K = np.array([[focal, 0.0, principal[0]], [0.0, focal, principal[1]], [0.0, 0.0, 1.0]])
    return K, transl


def label_rows(scene: Scene) -> dict[str, str]:
    """Return the sample's row of every label file, as JSON text."""
    mean = stand_in_model("right").hands_mean
    root = scene.joints_3d[MIDDLE_MCP]
    focal = scene.K[0, 0]
    uv_root = (scene.K @ root)[:2] / root[2]
    mano = np.concatenate(
        [
            scene.theta[:3],
            scene.theta[3:] - mean,
            scene.beta,
            uv_root,
            [focal / root[2]],
        ]
    )
    scale = np.linalg.norm(scene.joints_3d[MIDDLE_MCP] - scene.joints_3d[MIDDLE_MCP + 1])
    return {
        "K": json.dumps(scene.K.tolist()),
        "mano": json.dumps([mano.tolist()]),
        "xyz": json.dumps(scene.joints_3d.tolist()),
        "scale": json.dumps(float(scale)),
        # Rounded to 0.1 micrometre: this file is by far the largest.
        "verts": json.dumps(np.round(scene.vertices, 7).tolist()),
    }


def write_one(root: Path, seed: int, split: str, idx: int, num: int) -> dict[str, str]:
    """Render sample ``idx`` of ``num``, write its images and return its label rows."""
    scene = draw_scene(seed, split, idx)
    picture = _render(scene, seed, split, idx)
    if split == "evaluation":
        _write_jpeg(root / split / "rgb" / f"{idx:08d}.jpg", _version(picture, seed, split, idx, 1))
        return label_rows(scene)
    for version in range(NUM_VERSIONS):
        path = root / split / "rgb" / f"{idx + num * version:08d}.jpg"
        _write_jpeg(path, _version(picture, seed, split, idx, version))
    mask = np.repeat(np.round(picture.cover * 255.0).astype(np.uint8)[:, :, None], 3, axis=2)
    _write_jpeg(root / split / "mask" / f"{idx:08d}.jpg", mask)
    return label_rows(scene)


def write_labels(root: Path, split: str, rows: list[dict[str, str]]) -> None:
    """Write the label files of a split from the label rows of all its samples."""
    for name in FIELDS:
        text = ", ".join(row[name] for row in rows)
        (root / f"{split}_{name}.json").write_text(f"[{text}]", encoding="ascii")


def make_folders(root: Path) -> None:
    """Create the image folders."""
    for folder in ("training/rgb", "training/mask", "evaluation/rgb"):
        (root / folder).mkdir(parents=True, exist_ok=True)


def _render(scene: Scene, seed: int, split: str, idx: int) -> Picture:
    """Render the hand alone."""
    rng = _stream(seed, split, idx, 1)
    sight = Sight(
        vertices=scene.vertices,
        is_right=True,
        root_rotmat=Rotation.from_rotvec(scene.theta[:3]).as_matrix(),
        skin=draw_skin(rng),
        wrist_bend=draw_wrist_bend(rng),
    )
    return render_hands([sight], scene.K, (SIZE_PX, SIZE_PX), draw_lights(rng))


def _version(picture: Picture, seed: int, split: str, idx: int, version: int) -> np.ndarray:
    """Return one of the four versions of the image, uint8 RGB."""
    rng = _stream(seed, split, idx, 2 + version)
    size = (SIZE_PX, SIZE_PX)
    if version == 0:
        return compose(picture, draw_green_screen(rng, size), rng)
    gain = rng.uniform(0.78, 1.18) * (1.0 + rng.normal(0.0, 0.06, 3))
    tinted = Picture(rgb=picture.rgb * gain.astype(np.float32), cover=picture.cover)
    return compose(tinted, draw_background(rng, size), rng)


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write a baseline 4:2:0 JPEG from RGB."""
    save_picture(path, image[:, :, ::-1], _JPEG)
