"""``show-cache``: a contact sheet of a store, and what the store says about itself.

Each tile is one whole frame with the projected joints (a colour per finger, as in ``model.draw``)
and the box of each hand: blue with R, red with L. With MANO, vertices are small dots.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, UInt8
from rich.console import Console

from model.hand import LEFT, RIGHT
from preprocess.config import ShowConfig
from preprocess.quality import flag_names, project

if TYPE_CHECKING:
    from model.mano_files import ManoModels
    from pipeline.store.reader import Store

_SIDES: Final = ((RIGHT, "R", (70, 130, 255)), (LEFT, "L", (255, 70, 70)))
_CAPTION_PX: Final = 34
_GREY: Final = 48
_FONT: Final = 0
"""``cv2.FONT_HERSHEY_SIMPLEX``; OpenCV is imported late, the front door reads this module."""


def main(config: ShowConfig) -> int:
    """Draw a contact sheet with skeletons; print licence, citation, counts and joint set."""
    from pipeline.store.reader import open_store

    path = show(config)
    store = open_store(Path(config.store).expanduser())
    text = f"{describe(store)}\n  sheet: {path}"
    store.close()
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def show(config: ShowConfig) -> Path:
    """Write a contact sheet and return its path.

    Raises:
        StoreError: If there is no usable store, or no such split.
        ValueError: If ``rows`` names a row that the store does not have.
        OSError: If the picture cannot be written.
    """
    import cv2

    from model.draw import tile
    from pipeline.store.reader import open_store

    store = open_store(Path(config.store).expanduser())
    mano = _matching_mano(config, store)
    rows = choose_rows(config, store)
    tiles = [draw_row(store, row, config.tile_px, mano) for row in rows]
    sheet = tile(tiles, columns=min(len(tiles), max(1, round((len(tiles) * 1.5) ** 0.5))))
    store.close()
    out = Path(config.out).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise OSError(f"cannot write the contact sheet out={str(out)!r}")
    return out


def choose_rows(config: ShowConfig, store: "Store") -> list[int]:
    """Return the rows asked for, or random ones of the split: a function of the seed, ascending.

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
    """Return what a store says about itself: counts, joint set, MANO, licence, citation."""
    a = store.attributes
    counts = ", ".join(f"{name} {count}" for name, count in a.found_counts.items())
    flags = ", ".join(f"{name} {count}" for name, count in a.flag_counts.items() if count)
    return "\n".join(
        [
            f"{store.path}: {a.dataset}, {a.num_rows} rows",
            f"  splits: {counts}",
            f"  flags: {flags or 'none'}",
            f"  joint set: {a.joint_set}",
            f"  MANO: {a.mano_sha256[:12] or 'not used'}",
            f"  content sha256: {a.content_sha256}",
            f"  licence: {a.licence}",
            f"  cite: {a.citation}",
        ]
    )


def draw_row(
    store: "Store", row: int, tile_px: int, mano: "ManoModels | None" = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Return one frame with its labels drawn in and a caption below, RGB, ``tile_px`` wide."""
    import cv2

    from model.draw import draw_skeleton

    canvas = np.full((tile_px + _CAPTION_PX, tile_px, 3), _GREY, np.uint8)
    jpeg = store.jpeg_checked(row)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(jpeg, flags) if len(jpeg) else None
    scale = 1.0
    if image is not None:
        scale = tile_px / max(image.shape[:2])
        size = [max(1, round(side * scale)) for side in image.shape[:2]]
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas[: size[0], : size[1]] = cv2.resize(image, (size[1], size[0]), interpolation=method)
    elif len(jpeg):
        _write(canvas, tile_px // 2, "does not decode")
    else:
        _write(canvas, tile_px // 2, "no image")

    def on_tile(pixels: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        return (pixels + 0.5) * scale - 0.5  # pixel (0, 0) is the centre of the first pixel

    K = store.label("K")[row].astype(np.float64)
    joints = project(store.label("joints_3d")[[row]].astype(np.float64), K[None])[0]
    picture = canvas[:tile_px]
    for slot, letter, rgb in _SIDES:
        if mano is not None and store.label("has_beta")[row, slot]:
            for x, y in on_tile(_vertex_pixels(store, row, slot, mano, K)):
                cv2.circle(picture, (round(x), round(y)), 0, (255, 255, 255), -1)
        box = on_tile(store.label("bbox_xyxy")[row, slot].reshape(2, 2).astype(np.float64))
        if np.isfinite(box).all() and np.abs(box).max() < 1e5:
            (x0, y0), (x1, y1) = np.rint(box).astype(int).tolist()
            cv2.rectangle(picture, (x0, y0), (x1, y1), rgb, 1)
            place = (min(max(x0, 0), tile_px - 12), min(max(y0 - 4, 12), tile_px - 4))
            for colour, width in (((0, 0, 0), 4), (rgb, 1)):  # a dark rim reads on any image
                cv2.putText(picture, letter, place, _FONT, 0.5, colour, width, cv2.LINE_AA)
        valid = store.label("joint_valid")[row, slot]
        draw_skeleton(picture, on_tile(joints[slot]), valid, thickness=1)
    a = store.attributes
    sequence = a.tables["sequence"][store.label("sequence_idx")[row]]
    camera = a.tables["camera"][store.label("camera_idx")[row]]
    names = flag_names(int(store.label("quality")[row]))
    _write(canvas, tile_px + 13, f"{row}: {sequence} {camera} {store.label('frame_idx')[row]}")
    _write(canvas, tile_px + 28, ", ".join(names) or "clean")
    return canvas


def _write(canvas: UInt8[np.ndarray, "h w 3"], y: int, text: str) -> None:
    """Write one line, shortened in the middle to fit."""
    import cv2

    most = (canvas.shape[1] - 8) // 7  # this font is about 7 px wide
    if len(text) > most:
        text = f"{text[: most // 2 - 1]}..{text[-(most - most // 2 - 1) :]}"
    cv2.putText(canvas, text, (4, y), _FONT, 0.38, (235, 235, 235), 1, cv2.LINE_AA)


def _matching_mano(config: ShowConfig, store: "Store") -> "ManoModels | None":
    """Return MANO if the user has the one that the store was built with."""
    if not store.attributes.mano_sha256:
        return None
    from model.mano_files import find_mano, load_mano

    folder = find_mano(config.mano)
    models = None if folder is None else load_mano(folder)
    return models if models and models.sha256 == store.attributes.mano_sha256 else None


def _vertex_pixels(
    store: "Store", row: int, slot: int, mano: "ManoModels", K: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "n 2"]:
    """Return the pixels of the decoded vertices in front of the camera."""
    from model.mano_files import mano_forward

    theta, beta, transl = (
        store.label(name)[[row], slot].astype(np.float64) for name in ("theta", "beta", "transl")
    )
    arrays = mano.right if slot == RIGHT else mano.left
    vertices, _ = mano_forward(arrays, theta, beta, transl)
    pixels = project(vertices[None], K[None])[0, 0]
    visible: Float[np.ndarray, "n 2"] = pixels[np.isfinite(pixels).all(-1)]
    return visible
