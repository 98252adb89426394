"""Skin of the synthetic hand: a rest-pose texture atlas, and skin tones sampled per hand.

The atlas has two sheets, the back of the hand and the palm, seen straight on: a vertex's place on
a sheet is its rest position along the fingers and across the palm. Marks (nails, creases, redness)
come from the skeleton once per process; tone, mottling and the strength of the marks are sampled
per hand. All five fingers are treated equally, so colour does not distinguish fingers.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import cv2
import numpy as np

from model.hand import FINGERS
from preprocess.sample.hand.mesh import stand_in_mano
from preprocess.sample.hand.rig import to_mano_frame
from preprocess.sample.hand.shape import Measures, Skeleton, skeleton

PIXELS_PER_M: Final = 1100.0
_LOW: Final = (-0.035, -0.070)
"""Rest coordinates (along the fingers, across) of the atlas corner, metres."""
_EXTENT_M: Final = (0.240, 0.170)
_TONES: Final = np.array(
    [
        [246, 212, 190],
        [232, 188, 158],
        [212, 160, 126],
        [182, 128, 94],
        [142, 94, 66],
        [100, 64, 46],
        [66, 42, 32],
    ],
    dtype=np.float32,
)
"""Skin from light to dark, sRGB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """Atlas sheets [h, w] in 0..1: nails and creases and redness of the back, then of the palm."""

    nail: np.ndarray
    crease_back: np.ndarray
    crease_palm: np.ndarray
    red_back: np.ndarray
    red_palm: np.ndarray


@lru_cache(maxsize=1)
def atlas_coordinates() -> tuple[np.ndarray, np.ndarray]:
    """Return atlas pixels (x, y) [778, 2] of the vertices and how much each faces back [778]."""
    arrays = stand_in_mano()["right"]
    points, faces = arrays["v_template"], arrays["f"].astype(np.int64)
    normal = vertex_normals(points, faces)
    return _to_atlas(points), np.clip(0.5 + 0.9 * normal[:, 1], 0.0, 1.0)


def _to_atlas(points: np.ndarray) -> np.ndarray:
    """MANO rest positions [*, 3] to atlas pixels [*, 2]."""
    origin = to_mano_frame(np.zeros(3))
    along, across = origin[0] - points[..., 0], points[..., 2] - origin[2]
    return np.stack([across - _LOW[1], along - _LOW[0]], axis=-1) * PIXELS_PER_M


def vertex_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return area-weighted unit normals [n, 3]."""
    corner = points[faces]
    face_normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal = np.zeros_like(points)
    for axis in range(3):
        for i in range(3):
            normal[:, axis] += np.bincount(
                faces[:, i], weights=face_normal[:, axis], minlength=len(points)
            )
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return np.asarray(normal / np.maximum(length, 1e-20))


def _atlas_size() -> tuple[int, int]:
    """Height and width of one sheet, pixels."""
    return round(_EXTENT_M[0] * PIXELS_PER_M), round(_EXTENT_M[1] * PIXELS_PER_M)


class _Sheet:
    """A sheet being drawn in rest-space metres; strokes are antialiased."""

    def __init__(self) -> None:
        self.image = np.zeros(_atlas_size(), dtype=np.float32)

    def line(self, a: np.ndarray, b: np.ndarray, width_px: int, value: float) -> None:
        """Draw a straight stroke between two design-frame points."""
        ends = np.round(_to_atlas(to_mano_frame(np.stack([a, b]))) * 16).astype(int)
        layer = np.zeros(self.image.shape, dtype=np.uint8)
        cv2.line(layer, ends[0].tolist(), ends[1].tolist(), 255, width_px, cv2.LINE_AA, 4)
        self.image = np.maximum(self.image, layer.astype(np.float32) / 255.0 * value)

    def blob(self, centre: np.ndarray, radius_m: float, value: float) -> None:
        """Add a soft round spot."""
        x, y = _to_atlas(to_mano_frame(centre))
        rows, columns = np.mgrid[: self.image.shape[0], : self.image.shape[1]]
        squared = ((columns - x) ** 2 + (rows - y) ** 2) / (radius_m * PIXELS_PER_M) ** 2
        self.image = np.maximum(self.image, value * np.exp(-squared)).astype(np.float32)

    def soft(self, sigma_px: float) -> np.ndarray:
        """The sheet, blurred."""
        return np.asarray(cv2.GaussianBlur(self.image, (0, 0), sigma_px))


@lru_cache(maxsize=1)
def _marks() -> Marks:
    """Draw the marks of the mean hand."""
    bones = skeleton(Measures())
    nail, crease_back, crease_palm = _Sheet(), _Sheet(), _Sheet()
    red_back, red_palm = _Sheet(), _Sheet()
    for finger in FINGERS:
        chain = bones.chain[finger]
        tip = chain[3] - chain[2]
        side = np.cross(bones.nail[finger], tip / np.linalg.norm(tip))
        half = 0.0052 if finger == "thumb" else 0.0040
        _draw_nail(nail, chain[2] + 0.66 * tip, tip / np.linalg.norm(tip), side, half)
        red_palm.blob(chain[3] - 0.25 * tip, 0.009, 0.9)
        for i in (0, 1, 2):
            bone = (chain[i + 1] - chain[i]) / np.linalg.norm(chain[i + 1] - chain[i])
            across = np.cross(bones.nail[finger], bone) * 0.010
            if i:
                for shift in (-0.0022, 0.0, 0.0022):
                    at = chain[i] + shift * bone
                    crease_back.line(at - 0.6 * across, at + 0.6 * across, 1, 0.8)
                red_back.blob(chain[i], 0.009, 0.8)
                crease_palm.line(chain[i] - across, chain[i] + across, 2, 1.0)
            else:
                red_back.blob(chain[i], 0.011, 0.6)
        if finger != "thumb":
            root = chain[0] + 0.55 * (chain[1] - chain[0])
            bone = (chain[1] - chain[0]) / np.linalg.norm(chain[1] - chain[0])
            across = np.cross(bones.nail[finger], bone) * 0.011
            crease_palm.line(root - across, root + across, 2, 1.0)
    _draw_palm_lines(crease_palm, bones)
    red_palm.blob(np.array([0.045, 0.0, 0.030]), 0.020, 0.6)
    red_palm.blob(np.array([0.035, 0.0, -0.028]), 0.018, 0.6)
    red_palm.blob(np.array([0.082, 0.0, -0.005]), 0.020, 0.4)
    return Marks(
        nail=nail.soft(0.6),
        crease_back=crease_back.soft(0.7),
        crease_palm=crease_palm.soft(0.8),
        red_back=red_back.soft(1.0),
        red_palm=red_palm.soft(1.0),
    )


def _draw_nail(
    sheet: _Sheet, centre: np.ndarray, along: np.ndarray, side: np.ndarray, half: float
) -> None:
    """Fill a nail: an ellipse in the nail's plane, seen from the back."""
    angle = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)
    outline = (
        centre
        + 1.35 * half * np.cos(angle)[:, None] * along
        + half * np.sin(angle)[:, None] * side / np.linalg.norm(side)
    )
    corners = np.round(_to_atlas(to_mano_frame(outline)) * 16).astype(np.int32)
    layer = np.zeros(sheet.image.shape, dtype=np.uint8)
    cv2.fillPoly(layer, [corners], 255, cv2.LINE_AA, 4)
    sheet.image = np.maximum(sheet.image, layer.astype(np.float32) / 255.0)


def _draw_palm_lines(sheet: _Sheet, bones: Skeleton) -> None:
    """The three long lines of the palm, as short strokes along curves."""
    index, middle = bones.chain["index"][0], bones.chain["middle"][0]
    little = bones.chain["little"][0]
    thumb_side = index + np.array([-0.012, 0.0, 0.012])
    curves = [
        (little + np.array([-0.006, 0.0, -0.012]), middle * [0.86, 1, 1], index * [1.02, 1, 0.6]),
        (thumb_side, middle * [0.70, 1, 1], little * [0.62, 1, 0.9]),
        (thumb_side, np.array([0.058, 0.0, 0.008]), np.array([0.004, 0.0, 0.006])),
    ]
    for start, control, end in curves:
        t = np.linspace(0.0, 1.0, 13)[:, None]
        path = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
        for a, b in pairwise(path):
            sheet.line(a, b, 2, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkinAtlas:
    """Colour of one hand: ``back`` and ``palm`` float32 sheets [h, w, 3], sRGB 0..255."""

    back: np.ndarray
    palm: np.ndarray


def draw_skin(rng: np.random.Generator) -> SkinAtlas:
    """Sample a skin: tone from the lightest to the darkest, undertone, mottling, marks."""
    marks = _marks()
    position = rng.uniform(0.0, len(_TONES) - 1.001)
    low = int(position)
    tone = _TONES[low] + (position - low) * (_TONES[low + 1] - _TONES[low])
    tone = tone * (1.0 + rng.normal(0.0, [0.03, 0.03, 0.05]))
    darkness = position / (len(_TONES) - 1)
    palm_tone = tone + (_TONES[1] - tone) * (0.10 + 0.45 * darkness * rng.uniform(0.5, 1.0))
    palm_tone = palm_tone * np.array([1.02, 0.97, 0.96])
    strength = rng.uniform(0.4, 1.0, 4)
    sheets = []
    for base, crease, red in (
        (tone, marks.crease_back, marks.red_back),
        (palm_tone, marks.crease_palm, marks.red_palm),
    ):
        mottle = 1.0 + smooth_noise(rng, crease.shape, (9, 24, 80), rng.uniform(0.02, 0.06))
        shade = mottle * (1.0 - 0.30 * strength[0] * crease)
        redness = (strength[1] * red)[:, :, None] * np.array([0.02, -0.14, -0.12])
        blotch = smooth_noise(rng, crease.shape, (7, 15), 0.04)[:, :, None] * [0.3, -0.7, -0.5]
        sheets.append((base * shade[:, :, None] * (1.0 + redness + blotch)).astype(np.float32))
    back, palm = sheets
    nail = (0.75 * strength[2] * marks.nail)[:, :, None]
    nail_tone = 0.55 * tone + 0.45 * np.array([244.0, 205.0, 196.0])
    back = (back * (1.0 - nail) + nail_tone * nail).astype(np.float32)
    return SkinAtlas(back=back, palm=palm)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], cells: tuple[int, ...], amount: float
) -> np.ndarray:
    """Noise of several scales, float32 [h, w]; ``cells`` grid points across, equal amplitudes."""
    height, width = shape
    total = np.zeros((height, width), dtype=np.float32)
    for count in cells:
        grid = rng.standard_normal((count, count), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return total * np.float32(amount / np.sqrt(len(cells)))


def sample_skin(skin: SkinAtlas, at: np.ndarray, facing_back: np.ndarray) -> np.ndarray:
    """Look up the colour at atlas pixels ``at`` [m, 2]; returns [m, 3] float32, sRGB 0..255."""
    # remap takes two-dimensional maps of at most 32767 rows.
    columns = 256
    rows = -(-len(at) // columns)
    places = np.zeros((2, rows * columns), dtype=np.float32)
    places[:, : len(at)] = at.T
    x, y = places.reshape(2, rows, columns)
    looked = [
        cv2.remap(sheet, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT).reshape(-1, 3)[
            : len(at)
        ]
        for sheet in (skin.back, skin.palm)
    ]
    share = facing_back[:, None].astype(np.float32)
    return np.asarray(looked[1] + (looked[0] - looked[1]) * share)
