"""Catalogue of the synthetic objects: a surface and a texture per YCB name.

Sizes are typical of the class, metres. Up is +z as the object stands or lies.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from preprocess.sample.objects.surfaces import (
    Section,
    Surface,
    box,
    disc,
    ellipse,
    hoop,
    less,
    level_set,
    pressed,
    rod,
    round_box,
    turned,
    union,
    wrapped,
)
from preprocess.sample.objects.textures import (
    Colour,
    can,
    carton,
    fill,
    lines,
    plain,
    spot,
    worn,
    write,
)

Recipe = Callable[[str], tuple[Surface, np.ndarray]]
_METAL: Final = (176, 178, 182)
_WHITE: Final = (236, 236, 230)
_BLACK: Final = (34, 34, 38)


def _can(
    radius: float,
    height: float,
    base: Colour,
    word: str,
    ink: Colour,
    bands: tuple[tuple[float, float, Colour], ...],
    section: Section | None = None,
) -> Recipe:
    """A tin with a raised rim."""
    rim = 0.0015

    def make(name: str) -> tuple[Surface, np.ndarray]:
        inner = radius - 0.003
        profile = [
            *((0.0, 0.002), (inner, 0.002), (inner, 0.0), (radius - rim, 0.0)),
            *((radius, 0.003), (radius, height - 0.003), (radius - rim, height)),
            *((inner, height), (inner, height - 0.003), (0.0, height - 0.003)),
        ]
        whole = 2 * radius + height
        side = (radius / whole, (radius + height) / whole)
        texture = can(base, word, ink, bands=bands, side=side, ends=_METAL)
        return turned(profile, section), worn(texture, name)

    return make


def _carton(
    size: tuple[float, float, float],
    base: Colour,
    panel: Colour,
    ink: Colour,
    word: str,
    accents: tuple[Colour, Colour, Colour],
) -> Recipe:
    """A printed cardboard box."""
    return lambda name: (box(size), worn(carton(base, panel, ink, word, accents), name))


def _bottle(
    profile: list[tuple[float, float]],
    section: Section,
    base: Colour,
    cap: Colour,
    label: Colour,
    word: str,
    ink: Colour,
    cap_from: float,
) -> Recipe:
    """A plastic bottle; ``cap_from`` is where on the profile, 0..1, the cap begins."""

    def make(name: str) -> tuple[Surface, np.ndarray]:
        image = plain(base)
        fill(image, (0, 1), (cap_from, 1), cap)
        for u in (0.25, 0.75):
            fill(image, (u - 0.17, u + 0.17), (0.24, 0.55), label)
            write(image, word, (u, 0.44), 0.28, ink)
            lines(image, (u - 0.14, u + 0.14), (0.27, 0.36), 4, ink)
        spot(image, (0.5, 0.45), 22, label)
        fill(image, (0, 1), (0.20, 0.215), ink)
        return turned(profile, section), worn(image, name)

    return make


def _banana(name: str) -> tuple[Surface, np.ndarray]:
    """A tapered tube bent into an arc that lies on the table."""
    length, bend = 0.190, 1.15
    stations = (0.0, 0.01, 0.03, 0.08, 0.2, 0.4, 0.6, 0.78, 0.88, 0.93, 0.99, 1.0)
    radii = (0.0, 0.004, 0.007, 0.0125, 0.0165, 0.0185, 0.0180, 0.0145, 0.009, 0.0055, 0.005, 0.0)
    straight = turned(list(zip(radii, [length * s for s in stations], strict=True)))
    angle = (straight.vertices[:, 2] / length - 0.5) * bend
    radius = length / bend - straight.vertices[:, 0]
    vertices = np.stack(
        [radius * np.sin(angle), radius * np.cos(angle), straight.vertices[:, 1]], axis=1
    )
    faces, uv_faces = straight.faces, straight.uv_faces
    if np.linalg.det(vertices[faces]).sum() < 0:
        faces, uv_faces = faces[:, ::-1], uv_faces[:, ::-1]
    image = plain((232, 200, 62))
    fill(image, (0, 1), (0, 0.06), (74, 60, 32))
    fill(image, (0, 1), (0.93, 1), (132, 140, 60))
    for i in range(5):
        fill(image, (0.2 * i, 0.2 * i + 0.02), (0.06, 0.93), (206, 178, 58))
    for at in ((0.12, 0.3), (0.33, 0.62), (0.55, 0.42), (0.78, 0.7), (0.92, 0.5), (0.45, 0.8)):
        spot(image, at, 6, (142, 108, 44))
    fill(image, (0.60, 0.68), (0.55, 0.66), (40, 90, 170))
    surface = Surface(
        vertices=vertices,
        faces=np.ascontiguousarray(faces),
        uv=straight.uv,
        uv_faces=np.ascontiguousarray(uv_faces),
    )
    return surface, worn(image, name, 7.0)


def _pitcher(name: str) -> tuple[Surface, np.ndarray]:
    """An open jug with a handle."""
    body = union(
        disc((0, 0, 0.1175), 0.054, 0.235), rod((-0.03, 0, 0.215), (-0.054, 0, 0.23), 0.02, 0.012)
    )
    hollow = disc((0, 0, 0.135), 0.047, 0.250)
    handle = hoop((0.060, 0, 0.125), (0.036, 0.075), 0.009, axis=1)
    vertices, faces = level_set(
        less(union(body, handle), hollow),
        (-0.075, -0.06, -0.006),
        (0.112, 0.06, 0.243),
        cell_m=0.0045,
        num_faces=5000,
    )
    image = plain((70, 104, 176))
    fill(image, (0, 1), (0.90, 1), (226, 228, 232))
    fill(image, (0, 1), (0, 0.07), (44, 66, 120))
    for v in (0.35, 0.5, 0.65):
        fill(image, (0.30, 0.70), (v, v + 0.012), _WHITE)
    write(image, "JUG", (0.5, 0.22), 0.16, _WHITE)
    return wrapped(vertices, faces), worn(image, name)


def _mug(name: str) -> tuple[Surface, np.ndarray]:
    """A mug with a handle."""
    body = disc((0, 0, 0.0405), 0.0465, 0.081)
    hollow = disc((0, 0, 0.053), 0.0415, 0.090)
    handle = hoop((0.050, 0, 0.041), (0.024, 0.026), 0.0055, axis=1)
    vertices, faces = level_set(
        less(union(body, handle), hollow),
        (-0.053, -0.053, -0.006),
        (0.086, 0.053, 0.087),
        cell_m=0.0028,
        num_faces=4500,
    )
    image = plain((196, 48, 44))
    fill(image, (0, 1), (0.93, 1), (150, 30, 30))
    fill(image, (0.25, 0.75), (0.25, 0.75), _WHITE)
    write(image, "MUG", (0.5, 0.5), 0.26, (40, 60, 120))
    spot(image, (0.31, 0.35), 12, (236, 180, 40))
    return wrapped(vertices, faces), worn(image, name)


def _bowl(name: str) -> tuple[Surface, np.ndarray]:
    """A round bowl with a wall of 4 mm."""
    outside = [
        (0.0, 0.0),
        (0.036, 0.0),
        (0.044, 0.005),
        (0.062, 0.020),
        (0.075, 0.040),
        (0.0795, 0.053),
    ]
    inside = [(0.0750, 0.053), (0.0710, 0.042), (0.0580, 0.0235), (0.0400, 0.0095), (0.0, 0.006)]
    image = plain((208, 60, 52))
    fill(image, (0, 1), (0.40, 0.50), _WHITE)
    fill(image, (0, 1), (0.55, 1.0), (226, 206, 176))
    for i in range(8):
        spot(image, (0.0625 + 0.125 * i, 0.30), 13, (240, 190, 60))
        spot(image, (0.0625 + 0.125 * i, 0.70), 10, (70, 110, 160))
    return turned([*outside, *inside]), worn(image, name)


def _drill(name: str) -> tuple[Surface, np.ndarray]:
    """A cordless drill on its side: motor and chuck, a grip, a battery."""
    parts = union(
        disc((-0.015, 0.060, 0.0), 0.027, 0.115, axis=0),
        disc((0.060, 0.060, 0.0), 0.019, 0.045, axis=0),
        rod((0.078, 0.060, 0.0), (0.108, 0.060, 0.0), 0.012, 0.007),
        rod((-0.035, 0.050, 0.0), (-0.050, -0.052, 0.0), 0.021, 0.018),
        round_box((-0.038, -0.075, 0.0), (0.085, 0.036, 0.054), 0.008),
    )
    vertices, faces = level_set(
        parts, (-0.09, -0.10, -0.034), (0.122, 0.094, 0.034), cell_m=0.0035, num_faces=3500
    )
    image = plain((214, 118, 34))
    for flip in (False, True):

        def across(low: float, high: float, *, back: bool = flip) -> tuple[float, float]:
            inside = (0.01 + 0.48 * low, 0.01 + 0.48 * high)
            return (1.0 - inside[1], 1.0 - inside[0]) if back else inside

        fill(image, across(0.64, 1.0), (0.55, 1.0), _BLACK)
        fill(image, across(0.86, 1.0), (0.55, 1.0), _METAL)
        fill(image, across(0.0, 0.60), (0.30, 0.62), _BLACK)
        fill(image, across(0.0, 0.60), (0.0, 0.17), _BLACK)
        fill(image, across(0.10, 0.55), (0.17, 0.22), (236, 210, 60))
        fill(image, across(0.0, 0.06), (0.62, 1.0), _BLACK)
        write(image, "DRILL", (0.16 if not flip else 0.84, 0.83), 0.20, _WHITE)
    return pressed(vertices, faces), worn(image, name)


def _scissors(name: str) -> tuple[Surface, np.ndarray]:
    """Scissors with two rings, a little open."""
    parts = union(
        hoop((-0.068, 0.023, 0.0), (0.027, 0.016), 0.0062),
        hoop((-0.064, -0.022, 0.0), (0.023, 0.015), 0.0062),
        rod((-0.044, 0.014, 0.0), (0.0, 0.0, 0.0), 0.0062, 0.0060),
        rod((-0.043, -0.013, 0.0), (0.0, 0.0, 0.0), 0.0062, 0.0060),
        rod((0.0, 0.001, 0.0), (0.098, -0.010, 0.0), 0.0060, 0.0026),
        rod((0.0, -0.001, 0.0), (0.098, 0.010, 0.0), 0.0060, 0.0026),
    )
    vertices, faces = level_set(
        parts, (-0.106, -0.05, -0.0095), (0.107, 0.05, 0.0095), cell_m=0.0022, num_faces=4000
    )
    image = plain(_METAL)
    for u in ((0.0, 0.24), (0.76, 1.0)):
        fill(image, u, (0.0, 1.0), (208, 64, 38))
    fill(image, (0.22, 0.25), (0, 1), _BLACK)
    fill(image, (0.75, 0.78), (0, 1), _BLACK)
    return pressed(vertices, faces), worn(image, name)


def _marker(name: str) -> tuple[Surface, np.ndarray]:
    """A thick pen that lies on the table."""
    profile = [(0.0, 0.0), (0.0080, 0.0), (0.0092, 0.002), (0.0092, 0.085), (0.0098, 0.086)]
    profile += [(0.0098, 0.112), (0.0070, 0.120), (0.0, 0.121)]
    upright = turned(profile)
    image = plain((232, 228, 214))
    fill(image, (0, 1), (0.68, 1.0), (30, 52, 150))
    fill(image, (0, 1), (0.0, 0.12), (30, 52, 150))
    fill(image, (0, 1), (0.20, 0.24), (210, 60, 40))
    for u in (0.25, 0.75):
        write(image, "MARKER", (u, 0.45), 0.24, _BLACK)
    # The pen's axis goes from z to x: a turn, so the faces keep their sense.
    lying = upright.vertices[:, [2, 0, 1]]
    surface = Surface(vertices=lying, faces=upright.faces, uv=upright.uv, uv_faces=upright.uv_faces)
    return surface, worn(image, name)


def _clamp(scale: float) -> Recipe:
    """A spring clamp: two jaws, two grips, a hinge; ``scale`` is 1 for the large one."""

    def make(name: str) -> tuple[Surface, np.ndarray]:
        def at(x: float, y: float) -> tuple[float, float, float]:
            return (x * scale, y * scale, 0.0)

        thick = 0.0105 * scale**0.5
        parts = union(
            disc((0.0, 0.0, 0.0), 0.016 * scale, 2.2 * thick),
            rod(at(0, 0.008), at(-0.062, 0.038), thick, 0.8 * thick),
            rod(at(0, -0.008), at(-0.062, -0.038), thick, 0.8 * thick),
            rod(at(0, 0.008), at(0.030, 0.024), thick, 0.9 * thick),
            rod(at(0.030, 0.024), at(0.052, 0.006), 0.9 * thick, 0.8 * thick),
            rod(at(0, -0.008), at(0.030, -0.024), thick, 0.9 * thick),
            rod(at(0.030, -0.024), at(0.052, -0.006), 0.9 * thick, 0.8 * thick),
        )
        side = 1.4 * thick
        vertices, faces = level_set(
            parts,
            (-0.062 * scale - side, -0.038 * scale - side, -side),
            (0.052 * scale + side, 0.038 * scale + side, side),
            cell_m=0.003 * scale**0.5,
            num_faces=3500,
        )
        image = plain(_BLACK)
        for u in ((0.0, 0.17), (0.83, 1.0)):
            fill(image, u, (0.0, 1.0), (226, 104, 30))
        fill(image, (0.44, 0.56), (0.0, 1.0), (226, 104, 30))
        for middle in (0.27, 0.73):
            spot(image, (middle, 0.5), 24, _METAL)
        return pressed(vertices, faces), worn(image, name)

    return make


def _wood(name: str) -> tuple[Surface, np.ndarray]:
    """A block of wood with grain."""
    image = plain((190, 140, 88), (384, 576)).astype(np.float64)
    rows = np.arange(384)[:, None] / 384
    columns = np.arange(576)[None] / 576
    grain = np.sin(260 * columns + 4 * np.sin(9 * rows) + 3 * np.sin(31 * columns))
    image += 16 * grain[:, :, None]
    painted = np.clip(image, 0, 255).astype(np.uint8)
    fill(painted, (0.05, 0.12), (0.55, 0.95), (120, 78, 44))
    spot(painted, (0.5, 0.75), 26, (110, 70, 40))
    spot(painted, (0.83, 0.25), 34, (146, 98, 58))
    return box((0.085, 0.085, 0.200)), worn(painted, name, 6.0)


def _foam(name: str) -> tuple[Surface, np.ndarray]:
    """A red foam brick with pores."""
    image = plain((186, 50, 44), (384, 576))
    rng = np.random.default_rng(61)
    for x, y, radius in rng.random((160, 3)):
        spot(image, (float(x), float(y)), 2 + int(5 * radius), (150, 34, 32))
    write(image, "A", (0.5, 0.25), 0.08, _WHITE)
    return box((0.051, 0.078, 0.051)), worn(image, name, 7.0)


_YELLOW, _RED, _BLUE, _GREEN = (236, 196, 44), (190, 40, 38), (36, 66, 150), (46, 120, 62)
_MUSTARD: Final = [
    *((0.0, 0.0), (0.044, 0.0), (0.0475, 0.004), (0.0475, 0.105), (0.040, 0.138), (0.019, 0.152)),
    *(
        (0.019, 0.158),
        (0.0165, 0.160),
        (0.0155, 0.170),
        (0.006, 0.186),
        (0.004, 0.190),
        (0.0, 0.190),
    ),
]
_BLEACH: Final = [
    *((0.0, 0.0), (0.046, 0.0), (0.049, 0.004), (0.049, 0.130), (0.046, 0.160), (0.036, 0.195)),
    *(
        (0.017, 0.212),
        (0.017, 0.218),
        (0.0195, 0.219),
        (0.0195, 0.248),
        (0.018, 0.250),
        (0.0, 0.250),
    ),
]
RECIPES: Final[dict[str, Recipe]] = {
    "002_master_chef_can": _can(
        0.051, 0.140, _BLUE, "COFFEE", _WHITE,
        ((0.0, 0.10, _BLACK), (0.80, 0.86, _WHITE), (0.86, 1.0, _RED)),
    ),
    "003_cracker_box": _carton(
        (0.060, 0.158, 0.210), _RED, (240, 224, 190), _RED, "CRACKER", (_YELLOW, _BLUE, _GREEN)
    ),
    "004_sugar_box": _carton(
        (0.038, 0.089, 0.175), _YELLOW, _WHITE, _BLUE, "SUGAR", (_BLUE, _RED, _WHITE)
    ),
    "005_tomato_soup_can": _can(
        0.033, 0.101, _WHITE, "SOUP", _BLACK,
        ((0.48, 1.0, _RED), (0.44, 0.48, _YELLOW), (0.0, 0.06, _YELLOW)),
    ),
    "006_mustard_bottle": _bottle(
        _MUSTARD, ellipse(0.61), _YELLOW, _RED, _RED, "MUSTARD", _YELLOW, 0.80
    ),
    "007_tuna_fish_can": _can(
        0.0425, 0.033, _BLUE, "FISH", _YELLOW, ((0.0, 0.18, _GREEN), (0.86, 1.0, _WHITE))
    ),
    "008_pudding_box": _carton(
        (0.110, 0.089, 0.035), (110, 64, 36), (240, 220, 200), (90, 40, 20), "PUDDING",
        (_WHITE, _YELLOW, _RED),
    ),
    "009_gelatin_box": _carton(
        (0.085, 0.073, 0.028), (200, 50, 80), _WHITE, (200, 40, 60), "GELATIN",
        (_WHITE, _RED, _GREEN),
    ),
    "010_potted_meat_can": _can(
        0.0505, 0.083, _BLUE, "MEAT", _YELLOW,
        ((0.0, 0.14, _YELLOW), (0.78, 0.90, (220, 120, 110))), ellipse(0.53, 4.0),
    ),
    "011_banana": _banana,
    "019_pitcher_base": _pitcher,
    "021_bleach_cleanser": _bottle(
        _BLEACH, ellipse(0.66), _WHITE, _BLUE, (110, 160, 220), "CLEANER", _BLUE, 0.82
    ),
    "024_bowl": _bowl,
    "025_mug": _mug,
    "035_power_drill": _drill,
    "036_wood_block": _wood,
    "037_scissors": _scissors,
    "040_large_marker": _marker,
    "051_large_clamp": _clamp(1.0),
    "052_extra_large_clamp": _clamp(1.55),
    "061_foam_brick": _foam,
}  # fmt: skip
