"""Records of the folder format: one header, then one record per image.

These types are the format: files are held against them, and ``json_schema`` derives the published
schema. Unknown keys are refused, so that a misspelt one does not count as missing.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from model.hand import NUM_BETAS, NUM_JOINTS, STANDARD_FROM_INTERHAND, STANDARD_FROM_MANO21

VERSION: Final = 1
UNITS: Final = {"m": 1.0, "cm": 0.01, "mm": 0.001}
"""Metres per unit."""
JOINT_ORDERS: Final = {
    "standard": tuple(range(NUM_JOINTS)),
    "openpose": tuple(range(NUM_JOINTS)),
    "mano": STANDARD_FROM_MANO21,
    "interhand": STANDARD_FROM_INTERHAND,
}
"""Permutations ``standard = source[permutation]``. OpenPose, MediaPipe, FreiHAND and COCO list the
joints in the standard order: the wrist, then thumb to little finger, each from base to tip."""

Name = Annotated[str, Meta(min_length=1, max_length=1000)]
Length = Annotated[float, Meta(ge=-1e6, le=1e6)]
Point3 = Annotated[list[Length], Meta(min_length=3, max_length=3)]
Point2 = Annotated[list[Length], Meta(min_length=2, max_length=2)]
Joints3 = Annotated[list[Point3 | None], Meta(min_length=NUM_JOINTS, max_length=NUM_JOINTS)]
Joints2 = Annotated[list[Point2 | None], Meta(min_length=NUM_JOINTS, max_length=NUM_JOINTS)]
Box = Annotated[list[Length], Meta(min_length=4, max_length=4)]
Row3 = Annotated[list[Length], Meta(min_length=3, max_length=3)]
Row4 = Annotated[list[Length], Meta(min_length=4, max_length=4)]
Intrinsics = Annotated[list[Row3], Meta(min_length=3, max_length=3)]
Pose = Annotated[list[Row4], Meta(min_length=3, max_length=4)]
Angles = Annotated[
    list[Annotated[float, Meta(ge=-100, le=100)]], Meta(min_length=48, max_length=48)
]
Betas = Annotated[
    list[Annotated[float, Meta(ge=-100, le=100)]], Meta(min_length=NUM_BETAS, max_length=NUM_BETAS)
]


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    pass


class ObjectEntry(_Record, kw_only=True):
    """One object of the dataset."""

    name: Name
    mesh: str = ""
    """Path of its mesh below the folder: obj, ply, stl or off. Empty: none, hence no contact
    labels."""
    metres_per_unit: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    """Scale of the mesh."""


class Header(_Record, kw_only=True):
    """First record: what the numbers of the others mean."""

    handloom: Literal[1]
    """Version of the format."""
    units: Literal["m", "cm", "mm"]
    """Unit of joints, translations and poses."""
    axes: Literal["opencv", "opengl"] = "opencv"
    """Camera axes: x right, y down, z forward (opencv), or x right, y up, z backward (opengl)."""
    joint_order: (
        Literal["standard", "openpose", "mano", "interhand"]
        | Annotated[
            list[Annotated[int, Meta(ge=0, lt=NUM_JOINTS)]],
            Meta(min_length=NUM_JOINTS, max_length=NUM_JOINTS),
        ]
    ) = "standard"
    """Order of the 21 joints, or where each of the standard order is in yours."""
    joint_set: Literal["smplx", "freihand", "interhand26m", "manopth", "ho3d"] = "smplx"
    """How joints follow from a MANO mesh: whose fingertips and joint centres yours are."""
    mano_mean: Literal["added", "relative"] = "added"
    """Whether finger angles of theta include MANO's mean pose (flat_hand_mean=True) or not."""
    mano_left: Literal["fixed", "as_shipped"] = "fixed"
    """Left-hand model that the parameters belong to: with the sign of its shape directions fixed,
    or as MANO ships it (smplx issue 48)."""
    fov_deg: Annotated[float, Meta(ge=1, le=170)] = 60.0
    """Field of view across the longer side of images without K and focal_px, degrees."""
    name: Name = "folder"
    licence: str = "not stated"
    citation: str = "not stated"
    objects: list[ObjectEntry] = []


class Mano(_Record, kw_only=True):
    """MANO parameters of one hand."""

    theta: Angles
    """Axis-angle, radians: root in camera axes, then 15 joints."""
    beta: Betas
    transl: Point3
    """As in smplx, in ``units`` and ``axes``: joint 0 = its place at rest + transl."""


class Hand(_Record, kw_only=True):
    """One hand of an image."""

    side: Literal["right", "left"]
    joints_3d: Joints3 | None = None
    """Camera frame, in ``units`` and ``axes``; null for a joint that is not annotated."""
    joints_2d: Joints2 | None = None
    """Pixels; null for a joint that is not annotated."""
    mano: Mano | None = None
    bbox_xyxy: Box | None = None
    """Box of the hand, pixels; derived from the joints if missing."""


class PlacedObject(_Record, kw_only=True):
    """Pose of one object in an image."""

    name: Name
    """One of the header's ``objects``."""
    pose: Pose
    """``[R | t]``, object to camera, in ``units`` and ``axes``."""
    grasped: bool = False


class Image(_Record, kw_only=True):
    """One image and its labels; everything but ``image`` is optional."""

    image: Name
    """Path below the folder, with ``/``."""
    K: Intrinsics | None = None
    """Intrinsics, pixels."""
    focal_px: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """Focal length with the principal point in the middle, instead of K."""
    hands: Annotated[list[Hand], Meta(max_length=2)] = []
    objects: Annotated[list[PlacedObject], Meta(max_length=10)] = []
    T_world_from_cam: Pose | None = None
    """Camera pose, in ``units`` and ``axes``."""
    sequence: Name | None = None
    """Recording that the image belongs to; default: the folder of the image."""
    frame: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    """Number within the sequence; default: the place among the images of the sequence."""
    camera: Name = "camera"
    subject: Name = "unknown"
    split: Name | list[Name] | None = None
    """Split, or splits, that the image belongs to; default: train, and one of train90 and val10."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a line of ``annotations.jsonl``: the header or an image."""
    (header, image), components = msgspec.json.schema_components(
        (Header, Image), ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of annotations.jsonl: the header first, then one image each",
        "oneOf": [header, image],
        "$defs": components,
    }
