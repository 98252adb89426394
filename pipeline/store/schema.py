"""Schema of the store format: version, arrays, flags, attributes. No I/O.

One store is one dataset: a Zarr v3 group. Encoded JPEG bytes are in one 1-D sharded array
``image/bytes``; next to it ``image/offset``, ``image/length``, ``image/crc32c``, ``image/size_hw``.
Labels are in ``labels/<name>``, one array each, first axis = row. ``splits/<name>`` are int32 row
lists, ``objects/<name>`` the shapes referenced by ``object_id``. Everything else is one JSON object
in the group attribute ``handloom`` (``StoreAttributes``).

Rows are sorted by (sequence, camera, frame) and never removed: quality is a bit mask. Missing
values are NaN, missing ids -1, missing masks False. Units: metres, radians, pixels; frames as in
the name; OpenCV camera axes; pixel (0, 0) is the centre of the top-left pixel.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta

from model.hand import JointSet
from model.records import Count

FORMAT_VERSION: Final = 1
INNER_CHUNK_BYTES: Final = 256 << 10
"""Read unit of ``image/bytes`` for other Zarr readers; ours does not depend on it. At 1 MiB
tensorstore reads a quarter as many random images per second, at 64 KiB zarr-python writes at a
quarter of the speed."""
MAX_ROWS: Final = 2**31 - 1
"""Most rows of a store: splits are int32."""
MAX_SHARD_BYTES: Final = 2**40
MAX_IMAGE_BYTES: Final = 2**60
"""Largest sizes of one shard and of all: sums of offsets stay below 2^63."""
ATTRIBUTE: Final = "handloom"
OURS: Final = ".handloom-"
"""Begins the names of temporary folders and locks in the folder of a store."""
LOCK: Final = f"{OURS}build.lock"
"""Lock file of the process that writes a store."""
SYNTHETIC_FILE: Final = "SYNTHETIC.txt"
"""File in the root of a dataset that ``make-sample`` rendered; real datasets have none."""
NUM_OBJECTS: Final = 10
"""Object slots of a row; empty ones have id -1."""
CONTACT_STEP_M: Final = 0.25e-3
"""Unit of ``contact_dist``; a distance is rounded up."""
CONTACT_FAR: Final = 255
"""``contact_dist`` of a vertex farther than 254 steps (63.5 mm), or of a hand without labels."""
IN_CONTACT_M: Final = 3e-3
"""Threshold of ``in_contact``: a vertex of the hand is at most this far, or inside the object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One per-row array: ``shape`` excludes the row axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: float | int | bool
    unit: str
    meaning: str


def _spec(name: str, dtype: str, shape: tuple[int, ...], unit: str, meaning: str) -> ArraySpec:
    fill: float | int | bool = float("nan")
    if dtype == "bool":
        fill = False
    elif np.issubdtype(np.dtype(dtype), np.signedinteger):
        fill = -1
    elif np.issubdtype(np.dtype(dtype), np.integer):
        fill = 0
    return ArraySpec(name=name, dtype=dtype, shape=shape, fill=fill, unit=unit, meaning=meaning)


IMAGE_INDEX: Final = (
    _spec("offset", "int64", (), "byte", "start of the JPEG in image/bytes, over all shards"),
    _spec("length", "uint32", (), "byte", "length of the JPEG; 0 = unreadable, see quality"),
    _spec("crc32c", "uint32", (), "-", "crc32c of the JPEG bytes"),
    _spec("size_hw", "uint16", (2,), "px", "height, width from the JPEG header"),
)
"""Arrays below ``image/`` beside ``bytes``, one chunk per image shard."""

LABELS: Final = (
    _spec("K", "float32", (3, 3), "px", "intrinsics of the stored pixels"),
    _spec("A_stored_from_raw", "float32", (2, 3), "px", "stored pixels from official pixels"),
    _spec("bbox_xyxy", "float32", (2, 4), "px", "box of each hand's projected joints or official"),
    _spec("joints_3d", "float32", (2, 21, 3), "m, camera", "standard order, the store's joint_set"),
    _spec("joint_valid", "bool", (2, 21), "-", "joint is annotated"),
    _spec("theta", "float32", (2, 48), "rad, camera", "MANO axis-angle, absolute, root first"),
    _spec("beta", "float32", (2, 10), "-", "MANO shape for the fixed left-hand model"),
    _spec("beta_raw", "float32", (2, 10), "-", "MANO shape as shipped"),
    _spec("transl", "float32", (2, 3), "m, camera", "as in smplx: joint0 = J0(beta) + transl"),
    _spec("root_rest", "float32", (2, 3), "m", "J0(beta), rest wrist; used to rotate the hand"),
    _spec("T_world_from_cam", "float32", (4, 4), "m", "camera pose"),
    _spec("object_id", "int32", (10,), "-", "into attributes.tables['object']; -1 = empty slot"),
    _spec("object_pose", "float32", (10, 3, 4), "m, camera", "[R | t] camera from object"),
    _spec(
        "object_arti_rad",
        "float32",
        (10,),
        "rad",
        "angle of an articulated object: rotation of its part 1 about -z of the object's frame, "
        "before object_pose; NaN = rigid",
    ),
    _spec(
        "object_bbox_xyxy",
        "float32",
        (10, 4),
        "px",
        "box of the object's projected surface points, not clipped; NaN unless all lie before the "
        "camera",
    ),
    _spec(
        "object_moved_m",
        "float32",
        (10,),
        "m",
        "distance of the object's origin from its position in the sequence's first pose, world "
        "frame; without has_world in the camera frame, assuming a static camera",
    ),
    _spec("grasped_object", "int16", (), "-", "slot of the grasped object; -1 = unknown"),
    _spec(
        "contact_dist",
        "uint8",
        (2, 778),
        "0.25 mm",
        "distance of each MANO vertex to the surface of contact_object, rounded up to steps; the "
        "hand as the dataset fitted it; 0 = touches or inside, 255 = farther than 63.5 mm or "
        "unknown (has_contact)",
    ),
    _spec(
        "contact_object",
        "int16",
        (2,),
        "-",
        "object slot of contact_dist: the grasped one if it has a pose, else the posed one nearest "
        "to any vertex (the lowest in a tie); -1 = unknown",
    ),
    _spec(
        "in_contact",
        "bool",
        (2,),
        "-",
        "has_contact, and some vertex has contact_dist <= 12 (3 mm)",
    ),
    _spec(
        "palm_pose",
        "float32",
        (2, 3, 4),
        "m, camera",
        "[R | t] camera from palm: origin at the mean of wrist, index knuckle and little knuckle; "
        "x from the wrist to the midpoint of the two knuckles; z normal to the three, on the "
        "palmar side of either hand; y = cross(z, x): towards the little finger of a right hand, "
        "the index finger of a left one; NaN where one of the three is not annotated",
    ),
    _spec(
        "aperture_m",
        "float32",
        (2,),
        "m",
        "distance between thumb tip and index fingertip; NaN where one is not annotated",
    ),
    _spec("has_joints", "bool", (2,), "-", "some joint of the hand is annotated"),
    _spec("has_mano", "bool", (2,), "-", "theta, transl, root_rest are valid"),
    _spec("has_beta", "bool", (2,), "-", "beta is valid"),
    _spec("has_world", "bool", (), "-", "T_world_from_cam is valid"),
    _spec("has_object", "bool", (10,), "-", "object_id and object_pose are valid"),
    _spec("has_contact", "bool", (2,), "-", "contact_dist and contact_object are valid"),
    _spec(
        "official_valid",
        "bool",
        (3,),
        "-",
        "right hand, left hand, object: in view by the dataset's official protocol (arctic); true "
        "where the protocol has no such rule",
    ),
    _spec("sequence_idx", "int32", (), "-", "into attributes.tables['sequence']"),
    _spec("camera_idx", "int32", (), "-", "into attributes.tables['camera']"),
    _spec("subject_idx", "int32", (), "-", "into attributes.tables['subject']"),
    _spec("frame_idx", "int32", (), "-", "frame number within the sequence"),
    _spec("official_idx", "int32", (), "-", "position in the dataset's official order"),
    _spec("quality", "uint32", (), "-", "bit mask, bits named in attributes.flags; 0 = clean"),
    _spec("sample_ok", "bool", (), "-", "image is readable"),
)
"""Arrays below ``labels/``, one chunk per image shard, zstd."""

OPTIONAL_LABELS: Final = (
    _spec(
        "joints_2d",
        "float32",
        (2, 21, 2),
        "px",
        "annotated pixels of the joints, standard order, where the dataset has them beside or "
        "instead of joints_3d; NaN = not annotated",
    ),
)
"""Arrays below ``labels/`` that a store may have."""

PICTURES: Final = (
    _spec("depth_mm", "uint16", (), "mm", "distance along the optical axis; 0 = unknown"),
    _spec(
        "segmentation", "uint8", (), "-", "0 background, 1 + object slot, 254 left, 255 right hand"
    ),
)
"""Optional arrays [row, height, width] below ``labels/``; one size per store, that of the stored
pixels."""

OBJECT_POINTS: Final = 2048
SDF_SIDE: Final = 64
OBJECT_ARRAYS: Final[tuple[tuple[str, str, tuple[int, ...], str], ...]] = (
    ("points", "float32", (OBJECT_POINTS, 3), "m, object: on the surface, uniform by area"),
    ("normals", "float32", (OBJECT_POINTS, 3), "outward unit normals of the points"),
    (
        "part_id",
        "int8",
        (OBJECT_POINTS,),
        "part of each point: 0 = only or fixed part, 1 = rotates by -object_arti_rad about z",
    ),
    (
        "symmetries",
        "float32",
        (0, 3, 4),
        (
            "[S | s], m: p -> S p + s maps the shape to itself, so [R | t] and [R S | R s + t] are "
            "equivalent poses; of the geometry, ignoring texture; the identity first, continuous "
            "symmetries in steps of 2 degrees"
        ),
    ),
    (
        "sdf",
        "float16",
        (SDF_SIDE, SDF_SIDE, SDF_SIDE),
        "m: signed distance, negative inside; axes x, y, z of the object",
    ),
    (
        "sdf_box",
        "float32",
        (2, 3),
        "m, object: centres of the first and the last cell of sdf; cells are cubes",
    ),
    ("vertices", "float32", (0, 3), "m, object: of the mesh; articulated objects at angle 0"),
    ("vertex_part", "int8", (0,), "part of each vertex, as part_id"),
    ("faces", "int32", (0, 3), "of the mesh, counter-clockwise seen from outside"),
)
"""Arrays of ``objects/<name>``: name, dtype, shape (0 = any length), meaning. ``diameter_m``, the
largest distance of two vertices, is an attribute of the group."""

FLAGS: Final = {
    "image_missing": 1 << 0,
    "image_truncated": 1 << 1,
    "image_not_jpeg": 1 << 2,
    "no_label": 1 << 3,
    "no_mano": 1 << 4,
    "joints_not_finite": 1 << 5,
    "behind_camera": 1 << 6,
    "outside_image": 1 << 7,
    "mano_residual": 1 << 8,
    "left_refit": 1 << 9,
    "object_missing": 1 << 10,
    "object_behind_camera": 1 << 11,
    "image_damaged": 1 << 12,
    "flat_image": 1 << 13,
}
"""Quality rules; a flag never removes a row. ``image_*`` flags imply ``sample_ok`` False."""

FLAG_MEANINGS: Final = {
    "image_missing": "The image file is not there, is empty or cannot be read.",
    "image_truncated": "The image file is truncated, or its coded pixels end early.",
    "image_not_jpeg": "The image file has no format that the store can keep.",
    "no_label": "No joint of either hand is annotated, in 3D or 2D.",
    "no_mano": "A hand has joints but no MANO parameters.",
    "joints_not_finite": "A joint annotated by the dataset is NaN or infinite.",
    "behind_camera": "A joint is on or behind the camera plane.",
    "outside_image": "Most joints of a hand are clearly outside the image.",
    "mano_residual": "The decoded hand is over 1 mm from the official vertices; has_beta is False.",
    "left_refit": "No shape of the fixed left-hand model comes within 1 mm of the hand as shipped; "
    "has_beta is False.",
    "object_missing": "The row names an object without a usable pose.",
    "object_behind_camera": "An object's origin is on or behind the camera plane.",
    "image_damaged": "The coded pixels of the image file are damaged.",
    "flat_image": "The image is black or of another single colour.",
}
"""One sentence for each of ``FLAGS``."""


@dataclass(kw_only=True, slots=True)
class StoreAttributes:
    """The JSON object in the group attribute ``handloom``."""

    format: int
    dataset: str
    joint_set: str
    """Name of a ``model.hand.JointSet``."""
    num_rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    shard_rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    """Rows per shard of ``image/bytes`` and per chunk of the labels."""
    shard_capacity_bytes: Annotated[int, Meta(ge=INNER_CHUNK_BYTES, le=MAX_SHARD_BYTES)]
    """Logical bytes per shard, a multiple of the inner chunk; row r is in shard r // shard_rows."""
    image_encoding: Annotated[str, Meta(pattern="^(passthrough|recode)$")]
    """``passthrough``: the official file's bytes, unchanged; ``recode``: decoded, cropped and
    re-encoded as JPEG (settings in ``extra['recode']``)."""
    licence: str
    citation: str
    official_counts: dict[str, Count]
    """Rows per official split in the full dataset."""
    found_counts: dict[str, Count]
    """Rows per split here."""
    flags: dict[str, Annotated[int, Meta(ge=1, lt=2**32)]]
    flag_counts: dict[str, Count]
    tables: dict[str, list[str]]
    """Names that sequence_idx, camera_idx, subject_idx, object_id index."""
    plan_sha256: str
    content_sha256: str
    """Hash over decoded labels and JPEG bytes; empty until finished."""
    mano_sha256: str
    """Hash of the MANO arrays used; empty without MANO."""
    command: str
    """The command that builds (or finishes) this store."""
    finished: bool
    """The finish marker: the group attributes are written last."""
    extra: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return what contradicts in attributes whose types are right."""
        shards = -(-self.num_rows // self.shard_rows)
        bits = list(self.flags.values())
        overflow = [name for name, count in self.flag_counts.items() if count > self.num_rows]
        checks = {
            f"joint_set must be one of {', '.join(JointSet.__members__)}, got "
            f"{self.joint_set[:40]!r}": self.joint_set in JointSet.__members__,
            f"{shards} shards of {self.shard_capacity_bytes} bytes are too large": (
                shards * self.shard_capacity_bytes <= MAX_IMAGE_BYTES
            ),
            "flags must be different bits": (
                all(bit.bit_count() == 1 for bit in bits) and len(set(bits)) == len(bits)
            ),
            f"flag_counts must be at most {self.num_rows}, that of {overflow[:1]} is larger": (
                not overflow
            ),
        }
        return [problem for problem, holds in checks.items() if not holds]

    @property
    def is_synthetic(self) -> bool:
        """Return whether the images were rendered by ``make-sample``."""
        return self.extra.get("synthetic") is True
