"""``show-cache``: draw a contact sheet of a store and print its metadata.

Each tile is one whole frame with the projected joints (a colour per finger, as in ``model.draw``)
and the bounding box of each hand: blue with R, red with L. Objects have an outline and axes, the
grasped one thicker. With MANO, vertices are small dots, coloured by contact distance. Depth and
segmentation are shown below, if the store has them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, UInt8

from model.hand import LEFT, RIGHT
from pipeline.app.words import say
from preprocess.builder.report.page import PAGE_FILE
from preprocess.camera import project
from preprocess.config import ShowConfig
from preprocess.labels.quality import flag_names
from preprocess.show.objects import draw_objects, draw_vertices, load_shapes
from preprocess.show.sheet import FONT, GREY, LEFT_RGB, RIGHT_RGB, legend, picture_strip, write

if TYPE_CHECKING:
    from model.mano.files import ManoModels
    from pipeline.store.objects import ObjectShape
    from pipeline.store.reader import Store

_SIDES: Final = ((RIGHT, "R", RIGHT_RGB), (LEFT, "L", LEFT_RGB))
_CAPTION_PX: Final = 34


def main(config: ShowConfig) -> int:
    """Draw a contact sheet with skeletons; print licence, citation, counts and joint convention."""
    from pipeline.store.reader import open_store

    path = show(config)
    store = open_store(Path(config.store).expanduser())
    text = f"{describe(store)}\n  sheet: {path}"
    store.close()
    say(text)
    return 0


def show(config: ShowConfig) -> Path:
    """Write a contact sheet and return its path.

    Raises:
        StoreError: If there is no usable store, or no such split.
        ValueError: If ``rows`` contains a row that the store does not have.
        OSError: If the image cannot be written.
    """
    from model.draw import tile
    from pipeline.app.pictures import write_picture
    from pipeline.store.pictures import picture_names
    from pipeline.store.reader import open_store

    store = open_store(Path(config.store).expanduser())
    mano = _matching_mano(config, store)
    rows = choose_rows(config, store)
    shapes = load_shapes(store, rows)
    tiles = [draw_row(store, row, config.tile_px, mano, shapes) for row in rows]
    sheet = tile(tiles, columns=min(len(tiles), max(1, round((len(tiles) * 1.5) ** 0.5))))
    contact = mano is not None and bool(store.label("has_contact")[rows].any())
    names = picture_names(store.path)
    strip = legend(sheet.shape[1], objects=bool(shapes), contact=contact, pictures=names)
    sheet = np.concatenate([sheet, strip])
    store.close()
    out = Path(config.out).expanduser()
    write_picture(out, sheet)
    return out


def choose_rows(config: ShowConfig, store: "Store") -> list[int]:
    """Return the requested rows, or rows of the split sampled by the seed, ascending.

    Raises:
        ValueError: If a row does not exist or the split is empty.
    """
    if config.rows:
        bad = [row for row in config.rows if not 0 <= row < store.num_rows]
        if bad:
            raise ValueError(f"rows must lie in 0..{store.num_rows - 1}, got {bad}")
        return list(config.rows)
    candidates = store.split(config.split)
    if len(candidates) == 0:
        raise ValueError(f"split={config.split!r} of store {store.path} is empty, choose another")
    generator = np.random.default_rng(config.seed)
    chosen = generator.choice(candidates, size=min(config.num, len(candidates)), replace=False)
    return sorted(int(row) for row in chosen)


def describe(store: "Store") -> str:
    """Describe a store: counts, MANO, objects, licence, citation."""
    a = store.attributes
    counts = ", ".join(f"{name} {count}" for name, count in a.found_counts.items())
    flags = ", ".join(f"{name} {count}" for name, count in a.flag_counts.items() if count)
    lines = [
        f"{store.path}: {a.dataset}, {a.num_rows} rows",
        f"  splits: {counts}",
        f"  flags: {flags or 'none'}",
        f"  joint set: {a.joint_set}",
        f"  MANO: {a.mano_sha256[:12] or 'not used'}",
    ]
    if objects := a.tables.get("object"):
        lines.append(f"  objects: {', '.join(objects)}")
    lines += [
        f"  content sha256: {a.content_sha256}",
        f"  licence: {a.licence}",
        f"  cite: {a.citation}",
    ]
    if (store.path / PAGE_FILE).is_file():
        lines.append(f"  report: {store.path / PAGE_FILE}")
    return "\n".join(lines)


def draw_row(
    store: "Store",
    row: int,
    tile_px: int,
    mano: "ManoModels | None" = None,
    shapes: "Mapping[int, ObjectShape] | None" = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw one frame with its labels and a caption below, RGB, ``tile_px`` wide.

    Args:
        store: The store.
        row: Row to draw.
        tile_px: Longer side of the frame, pixels.
        mano: The MANO that the store was built with; None: draw no vertices.
        shapes: Objects by id, from ``load_shapes``; objects without a shape are not drawn.
    """
    picture, scale = _frame(store, row, tile_px)
    # Pixel (0, 0) is the centre of the first pixel, and scaling keeps the image corner fixed.
    shift = (scale - 1) / 2
    A_tile_from_stored = np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]])
    K = A_tile_from_stored @ store.label("K")[row].astype(np.float64)
    draw_objects(picture, store, row, shapes or {}, K)
    if mano is not None:
        for slot in np.flatnonzero(store.label("has_beta")[row]).tolist():
            distance = store.label("contact_dist")[row, slot]
            known = bool(store.label("has_contact")[row, slot])
            pixels = _vertex_pixels(store, row, slot, mano, K)
            draw_vertices(picture, pixels, distance if known else None)
    _draw_hands(picture, store, row, K, A_tile_from_stored)
    caption = np.full((_CAPTION_PX, tile_px, 3), GREY, np.uint8)
    sequence = store.name_of("sequence", int(store.label("sequence_idx")[row]))
    camera = store.name_of("camera", int(store.label("camera_idx")[row]))
    names = flag_names(int(store.label("quality")[row]))
    write(caption, 13, f"{row}: {sequence} {camera} {store.label('frame_idx')[row]}")
    write(caption, 28, ", ".join(names) or "clean")
    return np.concatenate([picture, picture_strip(store, row, tile_px), caption])


def _frame(store: "Store", row: int, tile_px: int) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """Return the image on a grey square canvas, and its scale."""
    import cv2

    canvas = np.full((tile_px, tile_px, 3), GREY, np.uint8)
    jpeg = store.jpeg_checked(row)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(jpeg, flags) if len(jpeg) else None
    if image is None:
        write(canvas, tile_px // 2, "does not decode" if len(jpeg) else "no image")
        return canvas, 1.0
    scale = tile_px / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[:2]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[: size[0], : size[1]] = cv2.resize(image, (size[1], size[0]), interpolation=method)
    return canvas, scale


def _draw_hands(
    picture: UInt8[np.ndarray, "h w 3"],
    store: "Store",
    row: int,
    K: Float[np.ndarray, "3 3"],
    A_tile_from_stored: Float[np.ndarray, "3 3"],
) -> None:
    """Draw box, letter and skeleton of each hand, in place."""
    import cv2

    from model.draw import draw_skeleton

    joints = project(store.label("joints_3d")[row].astype(np.float64), K)
    valid = store.label("joint_valid")[row]
    if store.has_label("joints_2d"):
        flat = store.label("joints_2d")[row].astype(np.float64)
        flat = flat @ A_tile_from_stored[:2, :2].T + A_tile_from_stored[:2, 2]
        joints = np.where(valid[..., None], joints, flat)
        valid = valid | np.isfinite(flat).all(-1)
    side = len(picture)
    for slot, letter, rgb in _SIDES:
        corners = store.label("bbox_xyxy")[row, slot].reshape(2, 2).astype(np.float64)
        box = corners @ A_tile_from_stored[:2, :2].T + A_tile_from_stored[:2, 2]
        if np.isfinite(box).all() and np.abs(box).max() < 1e5:
            (x0, y0), (x1, y1) = np.rint(box).astype(int).tolist()
            cv2.rectangle(picture, (x0, y0), (x1, y1), rgb, 1)
            place = (min(max(x0, 0), side - 12), min(max(y0 - 4, 12), side - 4))
            for colour, width in (((0, 0, 0), 4), (rgb, 1)):  # a dark rim is visible on any image
                cv2.putText(picture, letter, place, FONT, 0.5, colour, width, cv2.LINE_AA)
        draw_skeleton(picture, joints[slot], valid[slot], thickness=1)


def _matching_mano(config: ShowConfig, store: "Store") -> "ManoModels | None":
    """Return MANO if it is the one that the store was built with, else None."""
    if not store.attributes.mano_sha256:
        return None
    from model.mano.files import find_mano, load_mano

    folder = find_mano(config.mano)
    models = None if folder is None else load_mano(folder)
    return models if models and models.sha256 == store.attributes.mano_sha256 else None


def _vertex_pixels(
    store: "Store", row: int, slot: int, mano: "ManoModels", K: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "778 2"]:
    """Return the pixels of the decoded vertices; NaN behind the camera."""
    from model.mano.files import mano_forward

    theta, beta, transl = (
        store.label(name)[[row], slot].astype(np.float64) for name in ("theta", "beta", "transl")
    )
    arrays = mano.right if slot == RIGHT else mano.left
    vertices, _ = mano_forward(arrays, theta, beta, transl)
    return project(vertices[0], K)
