"""Read ``meta/<frame>.pkl`` of HO-3D as arrays, without executing code in the pickle.

The files are Python 2 pickles: a dict with ``camMat``, ``handJoints3D``, ``objName``, ``objRot``,
``objTrans``; in train also ``handPose``, ``handTrans``, ``handBeta``, in evaluation
``handBoundingBox``. A field without an optimisation result is None. OpenGL axes (y up, the hand at
negative z), metres, MANO's joint order. Further keys (contact, corners) are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from model.hand import NUM_JOINTS
from pipeline.pickles import PickleError, load_pickle
from preprocess.records import SourceError
from preprocess.sources.annotations import check_regular
from preprocess.sources.ho3d.files import NAME
from preprocess.sources.ycb import YCB_NAMES

_MAX_BYTES: Final = 4 << 20
"""Size limit; a file with all contact fields has 40 KB."""
_MAX_STEPS: Final = 20_000


class RawHand(NamedTuple):
    """``handPose``, ``handTrans`` and ``handBeta``."""

    pose: Float64[np.ndarray, " 48"]
    trans: Float64[np.ndarray, " 3"]
    beta: Float64[np.ndarray, " 10"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Meta:
    """Raw content of a meta file; NaN and None are missing."""

    K: Float64[np.ndarray, "3 3"]
    joints: Float64[np.ndarray, "21 3"]
    joint_valid: Bool[np.ndarray, " 21"]
    """In evaluation, only the wrist."""
    hand: RawHand | None
    """None unless all three are present and finite."""
    bbox_xyxy: Float64[np.ndarray, " 4"]
    object_name: str | None
    object_pose: tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]] | None
    """``objRot`` (axis-angle) and ``objTrans``; None unless both are present and finite."""


def read_meta(path: Path) -> Meta | None:
    """Read a meta file; None if it does not exist.

    Raises:
        SourceError: If it is broken, not a plain pickle, or a field does not match HO-3D's format;
            all problems of the file in one sentence.
    """
    check_regular(NAME, path)
    try:
        values = load_pickle(path, name=str(path), max_bytes=_MAX_BYTES, max_steps=_MAX_STEPS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{NAME}: cannot read {path} ({error.strerror})") from error
    except PickleError as error:
        raise SourceError(f"{NAME}: {error}; copy the file again") from error
    if not isinstance(values, dict) or "handJoints3D" not in values:
        found = f"keys {sorted(map(str, values))[:8]}" if isinstance(values, dict) else "no dict"
        raise SourceError(
            f"{NAME}: {path} holds {found}, expected a dict with handJoints3D, objRot and others; "
            "HO-3D v2 or v3 is needed, not H2O-3D"
        )
    return _parse(path, values)


def _parse(path: Path, values: Mapping[Any, Any]) -> Meta:
    problems: list[str] = []

    def numbers(key: str, *shapes: tuple[int, ...]) -> Float64[np.ndarray, "..."] | None:
        found = _numbers(values.get(key), shapes)
        if isinstance(found, str):
            problems.append(f"{key} is {found}, expected numbers of shape {shapes[0]} or None")
            return None
        return found

    def vector(key: str, length: int) -> Float64[np.ndarray, " k"] | None:
        found = numbers(key, (length,), (length, 1), (1, length))
        return None if found is None else found.reshape(length)

    K = numbers("camMat", (3, 3))
    joints, joint_valid = np.full((NUM_JOINTS, 3), np.nan), np.zeros(NUM_JOINTS, bool)
    given = numbers("handJoints3D", (NUM_JOINTS, 3), (3,), (1, 3), (3, 1))
    if given is not None:
        num = given.size // 3  # all joints, or the wrist alone
        joints[:num], joint_valid[:num] = given.reshape(num, 3), True
    pose, trans, beta = vector("handPose", 48), vector("handTrans", 3), vector("handBeta", 10)
    rotation, translation = vector("objRot", 3), vector("objTrans", 3)
    box = vector("handBoundingBox", 4)
    name = values.get("objName")
    is_name = isinstance(name, str) and name in YCB_NAMES
    if not (is_name or _is_none(name)):
        problems.append(f"objName is {name!r:.60}, expected a YCB name such as {YCB_NAMES[0]!r}")
    if problems:
        raise SourceError(f"{NAME}: {path}: {'; '.join(problems)}; copy the file again")
    hand, object_pose = None, None
    if pose is not None and trans is not None and beta is not None:
        hand = RawHand(pose, trans, beta) if _finite(pose, trans, beta) else None
    if rotation is not None and translation is not None and _finite(rotation, translation):
        object_pose = (rotation, translation)
    return Meta(
        K=np.full((3, 3), np.nan) if K is None else K,
        joints=joints,
        joint_valid=joint_valid,
        hand=hand,
        bbox_xyxy=np.full(4, np.nan) if box is None else box,
        object_name=str(name) if is_name else None,
        object_pose=object_pose,
    )


def _numbers(
    value: Any, shapes: tuple[tuple[int, ...], ...]
) -> Float64[np.ndarray, "..."] | str | None:
    """Return the numbers, None if the file has None, or a description of anything else."""
    if _is_none(value):
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        return "ragged"
    if array.dtype.kind not in "iuf":
        return f"{type(value).__name__} of {array.dtype}"
    if array.shape not in shapes:
        return f"of shape {array.shape}"
    return array.astype(np.float64)


def _is_none(value: Any) -> bool:
    # The release notes spell the missing value in quotes.
    return value is None or (isinstance(value, str) and value == "None")


def _finite(*arrays: Float64[np.ndarray, "..."]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)
