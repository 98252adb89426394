"""THE store format: version, arrays, flags, attributes. No I/O.

One store is one dataset: a Zarr v3 group. Encoded JPEG bytes lie in one 1-D sharded array
``image/bytes``; beside it ``image/offset``, ``image/length``, ``image/crc32c``, ``image/size_hw``.
Labels lie in ``labels/<name>``, one array each, first axis = row. ``splits/<name>`` are int32 row
lists. Everything that is not an array is one JSON object in the group attribute ``handloom``
(``StoreAttributes``).

Rows are sorted by (sequence, camera, frame) and never vanish: quality is a bit mask. Missing
values are NaN, missing ids -1, missing masks False. Units: metres, radians, pixels; frames as in
the name; OpenCV camera axes; pixel (0, 0) is the centre of the top-left pixel.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

FORMAT_VERSION: Final = 0
INNER_CHUNK_BYTES: Final = 256 << 10
"""Read unit of ``image/bytes`` for other Zarr readers; ours does not care. At 1 MiB tensorstore
reads a quarter as many random images per second, at 64 KiB zarr-python writes at a quarter."""
ATTRIBUTE: Final = "handloom"


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
    _spec(
        "joints_3d", "float32", (2, 21, 3), "m, camera", "standard order, joint set of the store"
    ),
    _spec("joint_valid", "bool", (2, 21), "-", "joint is annotated"),
    _spec("theta", "float32", (2, 48), "rad, camera", "MANO axis-angle, absolute, root first"),
    _spec("beta", "float32", (2, 10), "-", "MANO shape for the fixed left-hand model"),
    _spec("beta_raw", "float32", (2, 10), "-", "MANO shape as shipped"),
    _spec("transl", "float32", (2, 3), "m, camera", "smplx meaning: joint0 = J0(beta) + transl"),
    _spec(
        "root_rest", "float32", (2, 3), "m", "J0(beta), rest wrist; turns transl in augmentation"
    ),
    _spec("T_world_from_cam", "float32", (4, 4), "m", "camera pose"),
    _spec("has_joints", "bool", (2,), "-", "some joint of the hand is annotated"),
    _spec("has_mano", "bool", (2,), "-", "theta, transl, root_rest are valid"),
    _spec("has_beta", "bool", (2,), "-", "beta is valid"),
    _spec("has_world", "bool", (), "-", "T_world_from_cam is valid"),
    _spec("sequence_idx", "int32", (), "-", "into attributes.tables['sequence']"),
    _spec("camera_idx", "int32", (), "-", "into attributes.tables['camera']"),
    _spec("subject_idx", "int32", (), "-", "into attributes.tables['subject']"),
    _spec("frame_idx", "int32", (), "-", "frame number within the sequence"),
    _spec("official_idx", "int32", (), "-", "position in the dataset's official order"),
    _spec("quality", "uint32", (), "-", "bit mask, bits named in attributes.flags; 0 = clean"),
    _spec("sample_ok", "bool", (), "-", "image is readable"),
)
"""Arrays below ``labels/``, one chunk per image shard, zstd."""

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
}
"""Quality rules; a flag never removes a row. ``image_*`` flags imply ``sample_ok`` False."""


@dataclass(kw_only=True, slots=True)
class StoreAttributes:
    """The JSON object in the group attribute ``handloom``."""

    format: int
    dataset: str
    joint_set: str
    """Name of a ``model.hand.JointSet``."""
    num_rows: int
    shard_rows: int
    """Rows per shard of ``image/bytes`` and per chunk of the labels."""
    shard_capacity_bytes: int
    """Logical bytes per shard, a multiple of the inner chunk; row r is in shard r // shard_rows."""
    image_encoding: str
    """``passthrough``: the official file's bytes, untouched."""
    licence: str
    citation: str
    official_counts: dict[str, int]
    """Rows per official split in the full dataset."""
    found_counts: dict[str, int]
    """Rows per split here."""
    flags: dict[str, int]
    flag_counts: dict[str, int]
    tables: dict[str, list[str]]
    """Names behind sequence_idx, camera_idx, subject_idx."""
    plan_sha256: str
    content_sha256: str
    """Over decoded labels and JPEG bytes; empty until finished."""
    mano_sha256: str
    """Of the MANO arrays used; empty without MANO."""
    command: str
    """The command that builds (or finishes) this store."""
    finished: bool
    """The finish marker: the group attributes are written last."""
    extra: dict[str, Any] = field(default_factory=dict)
