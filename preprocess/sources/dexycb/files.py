"""Read DexYCB's ``meta.yml`` and calibration, validating keys, types and ranges.

All problems of a file are reported in one error.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from model.hand import LEFT, NUM_BETAS, RIGHT
from pipeline.store.schema import NUM_OBJECTS
from preprocess.records import SourceError
from preprocess.sources.dexycb.yaml import read_yaml

NAME: Final = "dexycb"
SERIALS: Final = (
    "836212060125", "839512060362", "840412060917", "841412060263",
    "932122060857", "932122060861", "932122061900", "932122062010",
)  # fmt: skip
"""The cameras in official order."""
NUM_YCB: Final = 21
HEIGHT: Final = 480
WIDTH: Final = 640
SIDES: Final = {"right": RIGHT, "left": LEFT}
_MAX_FRAMES: Final = 100_000
_FOLDER_PART: Final = re.compile(r"\w[\w.-]*")
_ROTATION_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """Content of one ``meta.yml``."""

    num_frames: int
    serials: tuple[str, ...]
    """Camera serials in official order."""
    ycb_ids: tuple[int, ...]
    """YCB ids, 1 to 21; row i of ``pose_y`` belongs to the i-th."""
    grasp: int
    """``ycb_grasp_ind``, an index into ``ycb_ids``."""
    slot: int
    """Side of the hand, from ``mano_sides``."""
    mano: str
    """``mano_calib``: the calibration that holds the subject's betas."""
    extrinsics: str


def read_meta(path: Path) -> Meta:
    """Read a ``meta.yml``.

    Raises:
        SourceError: If it cannot be read, lacks a key, or a value differs from official files.
    """
    table = _mapping(path)
    problems: list[str] = []

    def field(key: str, expected: str, parse: Callable[[Any], Any]) -> Any:
        try:
            return parse(table[key])
        except KeyError:
            problems.append(f"no {key}")
        except ValueError:
            problems.append(f"{key} is {_shown(table[key])}, expected {expected}")
        return None

    ids = field("ycb_ids", f"1 to {NUM_OBJECTS} distinct ids from 1 to {NUM_YCB}", _ycb_ids)
    most = NUM_OBJECTS - 1 if ids is None else len(ids) - 1
    values = {
        "num_frames": field("num_frames", "a positive integer", lambda v: _integer(v, 1)),
        "serials": field("serials", f"some of the {len(SERIALS)} official cameras", _serials),
        "ycb_ids": ids,
        "grasp": field(
            "ycb_grasp_ind", f"an index into ycb_ids, 0 to {most}", lambda v: _integer(v, 0, most)
        ),
        "slot": field(
            "mano_sides", "['right'] or ['left']", lambda v: SIDES[_one(v, tuple(SIDES))]
        ),
        "mano": field("mano_calib", "the name of one calibration", lambda v: _folder(_one(v))),
        "extrinsics": field("extrinsics", "the name of a calibration", _folder),
    }
    refuse(path, problems)
    return Meta(**values)


def read_intrinsics(path: Path) -> Float64[np.ndarray, "3 3"]:
    """Read K of the colour camera, in pixels of the 640 x 480 image.

    Raises:
        SourceError: If the file cannot be read or does not hold it.
    """
    table = _mapping(path)
    color = table.get("color")
    if not isinstance(color, dict):
        raise _bad(path, "no color")
    keys = ("fx", "fy", "ppx", "ppy")
    problems = [f"no color.{key}" for key in keys if key not in color]
    for key, size in (("width", WIDTH), ("height", HEIGHT)):
        if key in color and color[key] != size:
            problems.append(f"color.{key} is {_shown(color[key])}, expected {size}")
    refuse(path, problems)
    try:
        fx, fy, cx, cy = _numbers([color[key] for key in keys], len(keys))
        if min(fx, fy) <= 0:
            raise ValueError(fx, fy)  # noqa: TRY301  # one sentence for all that is no K
    except ValueError:
        raise _bad(path, f"color.{', color.'.join(keys)} are no focal lengths and centre") from None
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def read_extrinsics(path: Path) -> dict[str, Float64[np.ndarray, "4 4"]]:
    """Read ``T_world_from_cam`` by serial; the world is the master camera's frame.

    Raises:
        SourceError: If the file cannot be read, or an entry is not a rigid transform.
    """
    table = _mapping(path).get("extrinsics")
    if not isinstance(table, dict):
        raise _bad(path, "no extrinsics")
    transforms = {}
    problems = []
    for key, value in table.items():
        serial = str(key)
        if serial not in SERIALS:
            continue  # 'apriltag', the frame of the table
        try:
            T = np.concatenate((_numbers(value, 12).reshape(3, 4), [[0.0, 0.0, 0.0, 1.0]]))
        except ValueError:
            problems.append(f"extrinsics of {serial} are {_shown(value)}, expected 12 numbers")
            continue
        R = T[:3, :3]
        if np.abs(R @ R.T - np.eye(3)).max() > _ROTATION_TOLERANCE or np.linalg.det(R) < 0:
            problems.append(f"extrinsics of {serial} are no [R | t] with a rotation R")
        transforms[serial] = T
    refuse(path, problems)
    return transforms


def read_betas(path: Path) -> Float64[np.ndarray, " 10"]:
    """Read the shape (betas) of a subject's hand.

    Raises:
        SourceError: If the file cannot be read or does not hold it.
    """
    table = _mapping(path)
    try:
        return _numbers(table.get("betas"), NUM_BETAS)
    except ValueError:
        found = _shown(table["betas"]) if "betas" in table else "missing"
        raise _bad(path, f"betas is {found}, expected {NUM_BETAS} numbers") from None


def _mapping(path: Path) -> Mapping[Any, Any]:
    table = read_yaml(NAME, path)
    if not isinstance(table, dict):
        raise _bad(path, f"it is {_shown(table)}, expected a mapping")
    return table


def _integer(value: Any, least: int, most: int = _MAX_FRAMES) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(value)
    return value


def _items(value: Any, most: int) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= most:
        raise ValueError(value)
    return value


def _one(value: Any, choices: tuple[str, ...] | None = None) -> Any:
    (item,) = _items(value, 1)
    if choices is not None and not (isinstance(item, str) and item in choices):
        raise ValueError(value)
    return item


def _folder(value: Any) -> str:
    """Return the last component of a folder name; it must not be a path to elsewhere."""
    if not isinstance(value, str) or not _FOLDER_PART.fullmatch(value):
        raise ValueError(value)
    return value


def _serials(value: Any) -> tuple[str, ...]:
    found = [str(item) for item in _items(value, len(SERIALS)) if isinstance(item, (str, int))]
    if len(set(found)) != len(value) or not set(found) <= set(SERIALS):
        raise ValueError(value)
    return tuple(serial for serial in SERIALS if serial in found)


def _ycb_ids(value: Any) -> tuple[int, ...]:
    ids = tuple(_integer(item, 1, NUM_YCB) for item in _items(value, NUM_OBJECTS))
    if len(set(ids)) != len(ids):
        raise ValueError(value)
    return ids


def _numbers(value: Any, num: int) -> Float64[np.ndarray, " n"]:
    """Return finite numbers; also parses text, since YAML 1.1 reads 1e-05 as a string."""
    items = _items(value, num)
    if not all(type(item) in (int, float, str) for item in items):
        raise ValueError(value)
    numbers = [float(item) for item in items]
    if len(numbers) != num or not all(map(math.isfinite, numbers)):
        raise ValueError(value)
    return np.array(numbers)


def _shown(value: Any) -> str:
    """Format a value for an error message, always short."""
    nested = (list, tuple, dict)
    if not isinstance(value, nested):
        return repr(value)[:60]
    if not any(isinstance(item, nested) for item in value) and len(repr(value)) <= 60:
        return repr(value)
    return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"


# --- errors ---------------------------------------------------------------------------------------


def refuse(path: Path, problems: list[str]) -> None:
    """Reject a file that has problems.

    Raises:
        SourceError: If there are problems; lists all of them.
    """
    if problems:
        raise _bad(path, "; ".join(problems))


def _bad(path: Path, problem: str) -> SourceError:
    return SourceError(
        f"{NAME}: {path} is not an official file: {problem}; unpack the official file again"
    )
