"""``check``: report what a raw dataset holds and draw some of its images, before any build.

Reads annotations, file sizes and the headers of the images; a contact sheet shows labels where
they would end up, so that a wrong unit, axis or camera is seen at once.
"""

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8

from model.hand import LEFT, RIGHT
from pipeline.app.words import say
from preprocess.camera import project
from preprocess.config import CheckConfig
from preprocess.images.header import ImageProblem, SizeLimit, read_header
from preprocess.images.images import read_image_file
from preprocess.records import DatasetSource, LabelStack
from preprocess.show.sheet import GREY, LEFT_RGB, RIGHT_RGB, legend, write

_MOST_LABELS: Final = 2000
"""Images whose labels are looked at; more are sampled evenly."""
_MOST_HEADERS: Final = 500
_ORIENTATION: Final = 0x0112
"""EXIF tag; 1 = as stored."""
_FAR_PX: Final = 1e5
_CAPTION_PX: Final = 34
_FIRST: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was found; numbers of images unless the name says otherwise."""

    num_images: int
    splits: dict[str, int]
    sizes: Counter[str]
    """Sizes of the images looked at, ``640 x 480``."""
    problems: list[str]
    """Images that a store cannot hold, with the reason."""
    num_turned: int
    """Images with an EXIF orientation, which is not applied."""
    num_looked_at: int
    num_labelled: int
    """Images whose labels were looked at."""
    hands: dict[str, int]
    """Hands by kind of label, among these."""
    warnings: list[str]


def main(config: CheckConfig) -> int:
    """Report what a raw dataset holds, guess mistakes in it, and draw a contact sheet."""
    from preprocess.builder.tasks import load_mano_of
    from preprocess.sources.registry import open_source

    root = Path(config.root).expanduser()
    _, mano = load_mano_of(config.mano)
    source = open_source(config.dataset, root, mano)
    findings = look(source)
    sheet = draw(source, config)
    say(report(source, findings))
    say(f"  sheet: {sheet}")
    return 1 if findings.problems else 0


def look(source: DatasetSource) -> Findings:
    """Look at the images' headers and at labels, of a sample of a large dataset."""
    rows = source.rows
    looked_at = _spread(len(rows), _MOST_HEADERS)
    sizes, problems, turned = Counter[str](), list[str](), 0
    for i in looked_at:
        data = read_image_file(source.root / rows.image[i])
        header = data if isinstance(data, ImageProblem) else read_header(data)
        too_large = None if isinstance(header, ImageProblem) else SizeLimit().problem(header)
        if isinstance(header, ImageProblem) or too_large is not None:
            problem = header if isinstance(header, ImageProblem) else too_large
            assert problem is not None
            problems.append(f"{rows.image[i]} {problem.reason}")
            continue
        sizes[f"{header.width} x {header.height}"] += 1
        turned += isinstance(data, bytes) and _orientation(data) != 1
    labelled = _spread(len(rows), _MOST_LABELS)
    labels = source.label_job(labelled)()
    return Findings(
        num_images=len(rows),
        splits={name: len(found) for name, found in source.splits.items()},
        sizes=sizes,
        problems=problems,
        num_turned=turned,
        num_looked_at=len(looked_at),
        num_labelled=len(labelled),
        hands=_hands(labels),
        warnings=list(source.notes.get("warnings", [])),
    )


def report(source: DatasetSource, found: Findings) -> str:
    """Return the findings as text."""
    splits = ", ".join(f"{name} {count}" for name, count in found.splits.items())
    sizes = ", ".join(f"{size} ({count})" for size, count in found.sizes.most_common(_FIRST))
    more = len(found.sizes) - _FIRST
    hands = ", ".join(f"{kind} {count}" for kind, count in found.hands.items())
    lines = [
        (
            f"{source.root}: {source.dataset}, {found.num_images} images, "
            f"{len(set(source.rows.sequence))} sequences, {len(set(source.rows.camera))} cameras, "
            f"{len(set(source.rows.subject))} subjects"
        ),
        f"  splits: {splits or 'none'}",
        f"  hands of {found.num_labelled} images: {hands}",
        f"  objects: {', '.join(file.name for file in source.objects) or 'none'}",
        f"  sizes of {found.num_looked_at} images: {sizes or 'none readable'}"
        + (f" and {more} others" if more > 0 else ""),
    ]
    if found.num_turned:
        lines.append(
            f"  warning: {found.num_turned} images have an EXIF orientation, which is not applied: "
            "labels must be in the pixels as stored"
        )
    lines += [f"  warning: {warning}" for warning in found.warnings]
    lines += [f"  unusable: {problem}" for problem in found.problems[:_FIRST]]
    if len(found.problems) > _FIRST:
        lines.append(f"  and {len(found.problems) - _FIRST} more unusable images")
    return "\n".join(lines)


def draw(source: DatasetSource, config: CheckConfig) -> Path:
    """Write a contact sheet of evenly spaced images with their labels; return its path."""
    from model.draw import tile
    from pipeline.app.pictures import write_picture

    chosen = _spread(len(source.rows), config.num)
    labels = source.label_job(chosen)()
    tiles = [_tile(source, labels, i, row, config.tile_px) for i, row in enumerate(chosen)]
    sheet = tile(tiles, columns=min(len(tiles), max(1, round((len(tiles) * 1.5) ** 0.5))))
    strip = legend(sheet.shape[1], objects=False, contact=False, pictures=())
    out = Path(config.out).expanduser()
    write_picture(out, np.concatenate([sheet, strip]))
    return out


def _spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` numbers below ``count``, evenly spaced."""
    kept = min(count, most)
    return [int((i + 0.5) * count / kept) for i in range(kept)]


def _hands(labels: LabelStack) -> dict[str, int]:
    joints = (labels.joint_valid & np.isfinite(labels.joints_3d).all(-1)).any(-1)
    mano = np.isfinite(labels.theta).all(-1)
    flat = np.isfinite(labels.joints_2d).all(-1).any(-1)
    counts = {
        "right": (joints | flat)[:, RIGHT],
        "left": (joints | flat)[:, LEFT],
        "with joints_3d": joints,
        "with joints_2d": flat,
        "with MANO": mano,
    }
    return {kind: int(np.count_nonzero(hit)) for kind, hit in counts.items()}


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation of an image, 1 if it has none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, ValueError, SyntaxError):  # damaged metadata
        return 1


def _tile(
    source: DatasetSource, labels: LabelStack, i: int, row: int, tile_px: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw one image with boxes and skeletons, and its name below."""
    import cv2

    from model.draw import draw_skeleton

    canvas = np.full((tile_px, tile_px, 3), GREY, np.uint8)
    data = read_image_file(source.root / source.rows.image[row])
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = None
    if isinstance(data, bytes) and not isinstance(read_header(data), ImageProblem):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        write(canvas, tile_px // 2, "no image")
    else:
        scale = tile_px / max(image.shape[:2])
        width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
        canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        for slot, rgb in ((RIGHT, RIGHT_RGB), (LEFT, LEFT_RGB)):
            valid = labels.joint_valid[i, slot]
            pixels = project(labels.joints_3d[i, slot], labels.K[i])
            pixels = np.where(valid[:, None], pixels, labels.joints_2d[i, slot])
            joints = (pixels + 0.5) * scale - 0.5
            draw_skeleton(canvas, joints, np.isfinite(joints).all(-1), thickness=1)
            _draw_box(canvas, (labels.bbox_xyxy[i, slot] + 0.5) * scale - 0.5, joints, rgb)
    caption = np.full((_CAPTION_PX, tile_px, 3), GREY, np.uint8)
    write(caption, 13, source.rows.image[row])
    write(caption, 28, f"{source.rows.sequence[row]} {source.rows.frame_idx[row]}")
    return np.concatenate([canvas, caption])


def _draw_box(
    canvas: UInt8[np.ndarray, "h w 3"],
    box: Float[np.ndarray, " 4"],
    joints: Float[np.ndarray, "21 2"],
    rgb: tuple[int, int, int],
) -> None:
    """Draw the box of a hand, in place: the given one, or that of its joints."""
    import cv2

    seen = joints[np.isfinite(joints).all(-1)]
    if not np.isfinite(box).all() and len(seen):
        box = np.concatenate((seen.min(0), seen.max(0)))
    if np.isfinite(box).all() and np.abs(box).max() < _FAR_PX:
        x0, y0, x1, y1 = np.rint(box).astype(int).tolist()
        cv2.rectangle(canvas, (x0, y0), (x1, y1), rgb, 1)
