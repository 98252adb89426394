"""The README.md image: loader output for the five synthetic datasets.

    python -m benchmarks picture

Upper row: augmented network inputs, as ``Loader`` yields them. Lower row: the same with their
labels drawn. Everything is rendered by ``preprocess make-sample``; no dataset or MANO file is
needed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from rich.console import Console
from torch import Tensor

from benchmarks.config import PictureConfig
from model.draw import draw_skeleton, tile
from model.geometry.articulation import articulated
from model.geometry.camera import project
from model.geometry.rotation import rotate
from model.mano.files import ManoModels, load_mano
from model.mano.layer import ManoLayer
from pipeline.app.pictures import write_picture
from pipeline.batch import Batch
from pipeline.config import AugmentConfig, CacheConfig, PipelineConfig, ViewConfig, ViewKind
from pipeline.labels.objects import ObjectModels
from pipeline.loader import Loader
from train.step.mesh import decode_hands

TILE_PX: Final = 224
ZOOM: Final = 2
"""Labels are drawn at this scale and averaged down for antialiasing."""
LIGHT: Final = np.array([0.35, -0.55, -0.75]) / np.linalg.norm([0.35, -0.55, -0.75])
"""Direction to the light, camera frame."""
HAND_RGB: Final = ((90, 150, 255), (255, 110, 100))
"""Right, left."""
OBJECT_RGB: Final = (255, 214, 64)
OPACITY: Final = 0.7
STRIP_PX: Final = 30
RGB = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One synthetic dataset: its size and the samples to show."""

    dataset: str
    title: str
    split: str
    view: ViewKind
    num: int


COLUMNS: Final = (
    Column(dataset="freihand", title="FreiHAND", split="train90", view=ViewKind.hand, num=48),
    Column(
        dataset="interhand26m", title="InterHand2.6M", split="train", view=ViewKind.frame, num=48
    ),
    Column(dataset="dexycb", title="DexYCB", split="s0_train", view=ViewKind.hand_object, num=48),
    Column(dataset="ho3d", title="HO-3D", split="train", view=ViewKind.hand_object, num=48),
    Column(dataset="arctic", title="ARCTIC", split="p1_train", view=ViewKind.hand_object, num=108),
)


def main(config: PictureConfig) -> int:
    """Render the samples, build their stores, load a batch of each and draw the image."""
    columns = [column_of(column, Path(config.work), config.seed) for column in COLUMNS]
    images, labelled = zip(*columns, strict=True)
    strip = np.full((STRIP_PX, TILE_PX * len(COLUMNS), 3), 24, np.uint8)
    for i, column in enumerate(COLUMNS):
        place = (i * TILE_PX + 8, STRIP_PX - 10)
        text = f"{column.title} (synthetic)"
        cv2.putText(strip, text, place, 0, 0.48, (235, 235, 235), 1, cv2.LINE_AA)
    sheet = np.concatenate([strip, tile([*images, *labelled], columns=len(COLUMNS))])
    out = Path(config.out)
    write_picture(out, sheet, cv2.IMWRITE_JPEG_QUALITY, config.quality)
    print(f"{out}: {sheet.shape[1]} x {sheet.shape[0]} px, {out.stat().st_size / 1e3:.0f} KB")
    return 0


def column_of(column: Column, work: Path, seed: int) -> tuple[RGB, RGB]:
    """Return a sample of a dataset as a network input, and with its labels drawn."""
    store, mano = store_of(column, work)
    models = load_mano(mano)
    config = PipelineConfig(
        store=str(store),
        split=column.split,
        batch_size=16,
        seed=seed,
        input_px=TILE_PX,
        mirror_left=False,
        view=ViewConfig(kind=column.view, pad=1.3, require_joints=True),
        cache=CacheConfig(size_px=320),
        augment=AugmentConfig(rotation_deg=25, scale=0.1, gain=0.08, saturation=0.2),
    )
    with Loader(config, device=torch.device("cpu")) as loader:
        batch, objects = next(iter(loader)), loader.objects
    vertices, _ = decode_hands(ManoLayer(models), batch)
    sample = most_in_view(batch, vertices)
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.mean, config.std))
    pixels = (batch.image[sample].float() * std + mean).clamp(0, 1) * 255
    image: RGB = pixels.round().byte().permute(1, 2, 0).contiguous().numpy()
    return image, labelled(image, batch, vertices, objects, models, sample)


def store_of(column: Column, work: Path) -> tuple[Path, Path]:
    """Return the store of a synthetic dataset and its MANO files, created if missing."""
    from preprocess.builder.build import build
    from preprocess.config import BuildConfig, OnBadImage
    from preprocess.sample.generate import write_sample

    root, store = work / column.dataset, work / f"{column.dataset}.zarr"
    if not root.is_dir():
        write_sample(column.dataset, root, column.num, 3, workers=1)
    if not store.is_dir():
        settings = BuildConfig(
            dataset=column.dataset,
            root=str(root),
            out=str(store),
            mano=str(root / "mano"),
            workers=1,
            on_bad_image=OnBadImage.flag,
        )
        build(settings, console=Console(quiet=True))
    return store, root / "mano"


def most_in_view(batch: Batch, vertices: Float[Tensor, "b h 778 3"]) -> int:
    """Return the sample whose meshes cover most of the input without leaving it."""
    known = (batch.has_mano & batch.has_beta)[..., None]
    pixels = project(vertices, batch.K[:, None])
    inside = ((pixels > 4) & (pixels < TILE_PX - 5)).all(-1) & known
    size = torch.where(known[..., 0], (pixels.amax(2) - pixels.amin(2)).prod(-1).sqrt(), 0.0)
    value = inside.float().mean(-1) ** 4 * size.clamp(max=0.55 * TILE_PX)
    return int(value.sum(1).argmax())


def labelled(
    image: RGB,
    batch: Batch,
    vertices: Float[Tensor, "b h 778 3"],
    objects: ObjectModels,
    models: ManoModels,
    sample: int,
) -> RGB:
    """Draw the object's outline and the hands' meshes and skeletons on the image."""
    size = (TILE_PX * ZOOM, TILE_PX * ZOOM)
    canvas: RGB = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    K = batch.K[sample].double()
    if batch.has_object[sample]:
        draw_outline(canvas, surface(batch, objects, sample), K)
    known = (batch.has_mano & batch.has_beta)[sample]
    sides = (batch.is_right | batch.mirrored[:, None])[sample]
    hands = [int(hand) for hand in known.nonzero()[:, 0]]
    hands.sort(key=lambda hand: -float(vertices[sample, hand, :, 2].mean()))  # far ones first
    for hand in hands:
        is_right = bool(sides[hand])
        faces = models.right.f if is_right else models.left.f
        draw_mesh(canvas, vertices[sample, hand].double(), faces, K, HAND_RGB[not is_right])
    joints = project(batch.joints_3d[sample].double(), K[None]).numpy()
    valid = (batch.joint_valid & batch.has_joints[..., None])[sample].numpy()
    for hand in range(len(joints)):
        draw_skeleton(canvas, zoomed(joints[hand]), valid[hand], thickness=2)
    smooth: RGB = cv2.resize(canvas, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
    return smooth


def zoomed(pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Convert input pixels to canvas pixels; (0, 0) is the centre of the first pixel."""
    return pixels * ZOOM + (ZOOM - 1) / 2


def surface(batch: Batch, objects: ObjectModels, sample: int) -> Float[Tensor, "p 3"]:
    """Return the surface points of the manipulated object, input camera frame."""
    number = batch.object_id[sample]
    angle = batch.object_arti_rad[sample].double()
    points = articulated(objects.points[number].double(), objects.moving[number], angle)
    pose = batch.object_pose[sample].double()
    return rotate(pose[:, :3], points) + pose[:, 3]


def draw_outline(canvas: RGB, points: Float[Tensor, "p 3"], K: Float[Tensor, "3 3"]) -> None:
    """Draw the outline of a surface given by its points, in place."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for x, y in np.rint(zoomed(project(points, K).numpy())).astype(int).tolist():
        cv2.circle(mask, (x, y), 7, 255, -1)
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    shape = cv2.erode(closed, np.ones((9, 9), np.uint8))
    outlines, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for rgb, width in (((30, 30, 30), 8), (OBJECT_RGB, 4)):  # a dark rim is visible on any image
        cv2.drawContours(canvas, outlines, -1, rgb, width, cv2.LINE_AA)


def draw_mesh(
    canvas: RGB,
    vertices: Float[Tensor, "778 3"],
    faces: Int64[np.ndarray, "f 3"],
    K: Float[Tensor, "3 3"],
    rgb: tuple[int, int, int],
) -> None:
    """Blend a shaded mesh into an image, in place: far faces first, with back-face culling.

    Args:
        canvas: RGB, changed in place.
        vertices: Camera frame, metres.
        faces: Counter-clockwise seen from outside.
        K: Intrinsics of the input pixels.
        rgb: Colour of the mesh where the light is perpendicular to it.
    """
    corners = vertices.numpy()[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True).clip(1e-12)
    centres = corners.mean(1)
    is_front = (normals * centres).sum(-1) < 0
    brightness = 0.35 + 0.65 * (normals @ LIGHT).clip(0)
    pixels = np.rint(zoomed(project(vertices, K).numpy()) * 16).astype(np.int32)[faces]
    drawn = canvas.copy()
    for face in np.argsort(-centres[:, 2]):
        if is_front[face]:
            colour = tuple(round(channel * float(brightness[face])) for channel in rgb)
            cv2.fillConvexPoly(drawn, pixels[face], colour, cv2.LINE_AA, 4)
    cv2.addWeighted(drawn, OPACITY, canvas, 1 - OPACITY, 0, dst=canvas)
