"""Object overlays of a contact sheet: outlines, axes, and hand vertices coloured by contact.

Everything is in pixels of the tile; ``K`` is that of the tile.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, Integer, UInt8

from pipeline.store.schema import CONTACT_FAR
from preprocess.camera import project
from preprocess.objects.articulation import articulated

if TYPE_CHECKING:
    from pipeline.store.objects import ObjectShape
    from pipeline.store.reader import Store

AXIS_RGB: Final = ((255, 60, 60), (60, 210, 80), (70, 130, 255))
"""Colours of the x, y and z axes."""
GRASPED_RGB: Final = (255, 214, 64)
OTHER_RGB: Final = (120, 220, 230)
_HOT, _COLD = np.array([255.0, 40.0, 0.0]), np.array([40.0, 120.0, 255.0])
_AXIS_SHARE: Final = 1 / 3
"""Axis length as a fraction of the object's diameter."""
_RIM_PX: Final = 16
"""Border beyond the tile where the outline of an object cut by the tile runs, invisibly."""
_FAR_PX: Final = 1e6
"""Limit on coordinates: vertices near the camera plane project arbitrarily far away, and OpenCV
needs small integers."""
_SHIFT: Final = 4  # OpenCV draws with 4 fractional bits


def load_shapes(store: "Store", rows: Iterable[int]) -> dict[int, "ObjectShape"]:
    """Return the shapes of the objects in some rows by object id, as far as the store has them.

    Raises:
        StoreError: If a shape exists but cannot be read.
    """
    from pipeline.store.objects import object_names, read_object

    names, have = store.attributes.tables.get("object", []), set(object_names(store.path))
    ids = np.unique(store.label("object_id")[list(rows)]).tolist()
    return {
        i: read_object(store.path, names[i])
        for i in ids
        if 0 <= i < len(names) and names[i] in have
    }


def draw_objects(
    picture: UInt8[np.ndarray, "h w 3"],
    store: "Store",
    row: int,
    shapes: Mapping[int, "ObjectShape"],
    K: Float[np.ndarray, "3 3"],
) -> None:
    """Draw outline and axes of each object of a row, in place; the grasped one last and thicker.

    Objects without a pose or shape, behind the camera or outside the image are skipped.
    """
    import cv2

    ids, has = store.label("object_id")[row], store.label("has_object")[row]
    grasped = int(store.label("grasped_object")[row])
    scale = max(1, round(max(picture.shape) / 320))
    slots = [slot for slot in np.flatnonzero(has).tolist() if int(ids[slot]) in shapes]
    for slot in sorted(slots, key=lambda slot: slot == grasped):
        shape = shapes[int(ids[slot])]
        pose = store.label("object_pose")[row, slot].astype(np.float64)
        angle = store.label("object_arti_rad")[row, slot, None]
        vertices = articulated(shape.vertices, shape.vertex_part, angle)[0]
        vertices = vertices @ pose[:, :3].T + pose[:, 3]
        pixels = project(vertices, K)
        rgb = GRASPED_RGB if slot == grasped else OTHER_RGB
        width = scale * (2 if slot == grasped else 1)
        contours = outline(pixels, shape.faces, picture.shape[:2])
        for colour, wider in (((0, 0, 0), width), (rgb, 0)):  # a dark rim is visible on any image
            cv2.drawContours(picture, contours, -1, colour, width + wider, cv2.LINE_AA)
        _draw_axes(picture, axes_px(pose, shape.diameter_m * _AXIS_SHARE, K), width)


def outline(
    pixels: Float[np.ndarray, "v 2"], faces: Integer[np.ndarray, "f 3"], size_hw: tuple[int, int]
) -> list[Integer[np.ndarray, "k 1 2"]]:
    """Return the contours of a projected mesh, with holes, in whole pixels; empty if not visible.

    Args:
        pixels: The projected vertices; NaN is behind the camera, and faces using it are dropped.
        faces: Faces of the mesh.
        size_hw: Height and width of the image, pixels. Contours end just outside of it.
    """
    import cv2

    size_wh = np.array(size_hw[::-1])
    finite = np.isfinite(pixels).all(-1)
    grid = np.rint(np.clip(np.where(finite[:, None], pixels, 0.0), -_FAR_PX, _FAR_PX)).astype(int)
    triangles = grid[faces[finite[faces].all(-1)]] + _RIM_PX  # [f, 3, 2]
    low, high = triangles.min(1), triangles.max(1)
    near = ((high >= 0) & (low < size_wh + 2 * _RIM_PX)).all(-1)
    # A face within 2 x 2 pixels is drawn as its corners; most faces of a scanned object are.
    small = near & (high - low <= 1).all(-1)
    mask = np.zeros(size_wh[::-1] + 2 * _RIM_PX, np.uint8)
    dots = triangles[small].reshape(-1, 2)
    dots = dots[((dots >= 0) & (dots < mask.shape[::-1])).all(-1)]
    mask[dots[:, 1], dots[:, 0]] = 1
    for triangle in triangles[near & ~small].astype(np.int32):
        cv2.fillConvexPoly(mask, triangle, 1)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [contour - _RIM_PX for contour in contours]


def axes_px(
    pose: Float[np.ndarray, "3 4"], length_m: float, K: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "4 2"]:
    """Return the pixels of an object's origin and of the ends of its axes; NaN behind the camera.

    Args:
        pose: ``[R | t]``, object to camera, metres.
        length_m: Length of each axis, metres.
        K: Intrinsics of the image.
    """
    ends = np.concatenate([np.zeros((1, 3)), length_m * np.eye(3)]) @ pose[:, :3].T + pose[:, 3]
    return project(ends, K)


def contact_rgb(contact_dist: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    """Return a colour per vertex: red = touching, blue = far or unknown.

    Args:
        contact_dist: As ``labels/contact_dist``. A square root spreads the first millimetres, where
            contact happens.
    """
    share = np.sqrt(contact_dist.astype(np.float64) / CONTACT_FAR)[:, None]
    rgb: UInt8[np.ndarray, "n 3"] = np.rint(_HOT + share * (_COLD - _HOT)).astype(np.uint8)
    return rgb


def draw_vertices(
    picture: UInt8[np.ndarray, "h w 3"],
    pixels: Float[np.ndarray, "778 2"],
    contact_dist: UInt8[np.ndarray, "778"] | None,
) -> None:
    """Draw hand vertices in place: coloured by contact, the nearest on top, or small and white."""
    import cv2

    order = (
        np.arange(len(pixels)) if contact_dist is None else np.argsort(-contact_dist.astype(int))
    )
    order = order[(np.abs(pixels[order]) < _FAR_PX).all(-1)]  # NaN is not
    colours = np.full((len(pixels), 3), 255) if contact_dist is None else contact_rgb(contact_dist)
    radius = 0 if contact_dist is None else max(1, round(max(picture.shape) / 400))
    kind = cv2.LINE_AA if radius else cv2.LINE_8  # smoothed, a radius of 0 leaves nothing
    for i in order.tolist():
        x, y = pixels[i]
        cv2.circle(picture, (round(x), round(y)), radius, colours[i].tolist(), -1, kind)


def _draw_axes(
    picture: UInt8[np.ndarray, "h w 3"], ends: Float[np.ndarray, "4 2"], width: int
) -> None:
    import cv2

    seen = (np.abs(ends) < _FAR_PX / 100).all(-1)  # NaN is not
    fixed = (np.where(seen[:, None], ends, 0.0) * (1 << _SHIFT)).round().astype(int).tolist()
    for end, rgb in enumerate(AXIS_RGB, start=1):
        if seen[0] and seen[end]:
            cv2.line(picture, fixed[0], fixed[end], rgb, width, cv2.LINE_AA, _SHIFT)
