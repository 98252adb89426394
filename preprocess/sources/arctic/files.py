"""Read ARCTIC's files: sequences (``raw_seqs``), cameras and objects (``meta``), sequence lists.

These are the files that users download; a build does not need the 18 GB of processed splits.
Pickles are read without executing code in them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from pipeline.pickles import load_npy
from preprocess.records import Lens, SourceError
from preprocess.sources.annotations import check_regular, read_json
from preprocess.sources.inventory import Inventory

NAME: Final = "arctic"
VIEWS: Final = 9
"""View 0 is egocentric, views 1 to 8 are static."""
EGO: Final = 0
OBJECTS: Final = (
    "capsulemachine", "box", "ketchup", "laptop", "microwave", "mixer", "notebook",
    "espressomachine", "waffleiron", "scissors", "phone",
)  # fmt: skip
IMAGE_FOLDERS: Final = ("images", "cropped_images")
"""Folders with the same file names; the first that holds a sequence is read."""
CROPPED: Final = IMAGE_FOLDERS[1]
SIDES: Final = ("right", "left")
"""By slot."""
SEQUENCE: Final = re.compile(rf"({'|'.join(OBJECTS)})_(use|grab)_.+")
"""Folder of a sequence; some official names end in ``_retake`` or ``_retake2``."""
MANO_FILE: Final = ".mano.npy"
_SUBJECT: Final = re.compile(r"s\d\d")
_BACKGROUNDS: Final = "backgrounds"
"""Official folder beside the subjects of ``images``, without sequences."""
_VIEW: Final = re.compile(r"[0-8]")
_IMAGE: Final = re.compile(r"[0-9]{5}\.jpg")
_RAW_FILE: Final = re.compile(rf"{SEQUENCE.pattern}\.(mano|object|smplx|egocam\.dist)\.npy")
_ROTATION_TOLERANCE: Final = 1e-3
_MAX_OFFSET: Final = 99_999
"""Largest number that the name of an image holds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HandTrack:
    """MANO parameters of one hand in a sequence, world frame, angles relative to the mean pose."""

    rot: Float64[np.ndarray, "f 3"]
    pose: Float64[np.ndarray, "f 45"]
    trans_m: Float64[np.ndarray, "f 3"]
    shape: Float64[np.ndarray, " 10"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawSequence:
    """A captured sequence, world frame."""

    hands: tuple[HandTrack, HandTrack]
    """By slot."""
    object: Float64[np.ndarray, "f 7"]
    """Articulation angle (radians), axis-angle, translation (millimetres)."""
    T_ego_from_world: Float64[np.ndarray, "f 4 4"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rig:
    """The static cameras of a subject."""

    T_cam_from_world: Float64[np.ndarray, "8 4 4"]
    K: Float64[np.ndarray, "8 3 3"]
    image_size_wh: Float64[np.ndarray, "9 2"]
    """Image size of all views, egocentric first, pixels."""
    ioi_offset: int
    """Number of the image file that shows the first captured frame."""


def list_labelled(inventory: Inventory) -> set[str]:
    """Return the sequences (``sXX/<name>``) that have labels, by ``raw_seqs``.

    Raises:
        SourceError: If a folder cannot be listed.
    """
    return {
        f"{subject}/{file.removesuffix(MANO_FILE)}"
        for subject in inventory.folders("raw_seqs", _SUBJECT.fullmatch)
        for file in inventory.files(f"raw_seqs/{subject}", _RAW_FILE.fullmatch)
        if file.endswith(MANO_FILE)
    }


def list_pictured(inventory: Inventory) -> dict[str, list[str]]:
    """Return the sequences (``sXX/<name>``) in each existing folder of ``IMAGE_FOLDERS``, sorted.

    Raises:
        SourceError: If neither folder exists or one cannot be listed.
    """
    root = inventory.root
    there = [name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    if not there:
        raise SourceError(
            f"{NAME}: {root} has no {'/ or '.join(IMAGE_FOLDERS)}/; expected one of them beside "
            "raw_seqs and meta, unpack it or point root= at the right folder"
        )
    return {
        name: [
            f"{subject}/{sequence}"
            for subject in inventory.folders(name, _SUBJECT.fullmatch, is_known=_BACKGROUNDS.__eq__)
            for sequence in inventory.folders(f"{name}/{subject}", SEQUENCE.fullmatch)
        ]
        for name in there
    }


def largest_file_number(inventory: Inventory, folder: str) -> int:
    """Return the largest number of an image in any view of a sequence's ``folder``; -1 = none.

    Raises:
        SourceError: If a folder cannot be listed.
    """
    return max(
        (
            int(file[:-4])
            for view in inventory.folders(folder, _VIEW.fullmatch)
            for file in inventory.files(f"{folder}/{view}", _IMAGE.fullmatch)
        ),
        default=-1,
    )


# --- meta -----------------------------------------------------------------------------------------


def read_rigs(root: Path) -> dict[str, Rig]:
    """Return the cameras of every subject in ``meta/misc.json``.

    Raises:
        SourceError: If the file is missing, broken, or incomplete for a subject.
    """
    path = root / "meta" / "misc.json"
    content = read_json(NAME, path)
    if not isinstance(content, dict) or not content:
        raise SourceError(f"{NAME}: {path} must hold an object per subject; download it again")
    rigs = {}
    for subject, entry in content.items():
        where = f"{path}: {subject}"
        if not isinstance(entry, Mapping):
            raise SourceError(f"{NAME}: {where} must be an object; download it again")
        offset = _whole_number(entry.get("ioi_offset"), f"{where}.ioi_offset")
        T = finite_array(entry.get("world2cam"), (VIEWS - 1, 4, 4), f"{where}.world2cam")
        _require_rigid(T, f"{where}.world2cam")
        K = finite_array(entry.get("intris_mat"), (VIEWS - 1, 3, 3), f"{where}.intris_mat")
        size = finite_array(entry.get("image_size"), (VIEWS, 2), f"{where}.image_size")
        if size.min() < 1:
            raise SourceError(
                f"{NAME}: {where}.image_size must hold pixels, got {size.min():g}; download it "
                "again"
            )
        rigs[subject] = Rig(T_cam_from_world=T, K=K, image_size_wh=size, ioi_offset=offset)
    return rigs


def _whole_number(value: Any, where: str) -> int:
    """Return a number of images; JSON may write it as 3.0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value % 1 != 0 or abs(value) > _MAX_OFFSET:
        raise SourceError(
            f"{NAME}: {where} must be a whole number, got {value!r:.40}, expected at most "
            f"{_MAX_OFFSET}; download meta again"
        )
    return int(value)


def read_protocol(root: Path, protocol: str) -> dict[str, list[str]] | None:
    """Return the sequences (``sXX/<name>``) of train, val and test; None without the file.

    Train is everything in neither of the other two, as in the official code.

    Raises:
        SourceError: If the file is broken or its lists overlap.
    """
    path = root / "splits_json" / f"protocol_{protocol}.json"
    if not path.exists():
        return None
    content = read_json(NAME, path)
    lists: dict[str, list[str]] = {}
    for split in ("train", "val", "test"):
        names = content.get(split) if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SourceError(f"{NAME}: {path} must list the sequences of {split!r}")
        lists[split] = list(names)
    if not lists["train"]:
        raise SourceError(f"{NAME}: {path} lists no sequences of 'train'; download it again")
    held = set(lists["val"]) | set(lists["test"])
    if len(held) != len(lists["val"]) + len(lists["test"]):
        raise SourceError(f"{NAME}: {path} has a sequence twice in val and test")
    lists["train"] = [name for name in dict.fromkeys(lists["train"]) if name not in held]
    return lists


# --- raw_seqs -------------------------------------------------------------------------------------


def read_num_frames(root: Path, sequence: str) -> int:
    """Return the number of captured frames of ``sXX/<name>``.

    Raises:
        SourceError: If the file is missing or broken.
    """
    return len(_read_object(root, sequence))


def read_raw(root: Path, sequence: str) -> RawSequence:
    """Read a sequence, ``sXX/<name>``.

    Raises:
        SourceError: If a file is missing or broken, or the files differ in length.
    """
    parameters = _read_object(root, sequence)
    num = len(parameters)
    path = _path(root, sequence, "mano")
    mano = _read_dict(path)
    hands = []
    for side in SIDES:
        entry = mano.get(side)
        if not isinstance(entry, Mapping):
            raise SourceError(f"{NAME}: {path} has no {side!r} hand; download raw_seqs again")
        where = f"{path}: {side}"
        shape = np.asarray(entry.get("shape"), dtype=object)
        hands.append(
            HandTrack(
                rot=finite_array(entry.get("rot"), (num, 3), f"{where}.rot"),
                pose=finite_array(entry.get("pose"), (num, 45), f"{where}.pose"),
                trans_m=finite_array(entry.get("trans"), (num, 3), f"{where}.trans"),
                shape=finite_array(entry.get("shape"), (10,), f"{where}.shape")
                if shape.ndim < 2
                else finite_array(entry.get("shape"), (num, 10), f"{where}.shape")[0],
            )
        )
    return RawSequence(
        hands=(hands[0], hands[1]),
        object=parameters,
        T_ego_from_world=_read_ego(root, sequence, num)[0],
    )


def read_lens(root: Path, sequence: str) -> Lens:
    """Read the lens of the egocentric camera in ``sXX/<name>``.

    Raises:
        SourceError: If the file is missing or broken.
    """
    return _read_ego(root, sequence, None)[1]


def _read_ego(
    root: Path, sequence: str, num: int | None
) -> tuple[Float64[np.ndarray, "f 4 4"], Lens]:
    path = _path(root, sequence, "egocam.dist")
    content = _read_dict(path)
    rotation = content.get("R_k_cam_np")
    num = len(rotation) if num is None and isinstance(rotation, np.ndarray) else num
    R = finite_array(rotation, (num or 0, 3, 3), f"{path}: R_k_cam_np")
    t = finite_array(content.get("T_k_cam_np"), (len(R), 3, 1), f"{path}: T_k_cam_np")
    T = np.zeros((len(R), 4, 4))
    T[:, :3, :3], T[:, :3, 3:], T[:, 3, 3] = R, t, 1.0
    _require_rigid(T, f"{path}: R_k_cam_np")
    K = finite_array(content.get("intrinsics"), (3, 3), f"{path}: intrinsics")
    dist8 = np.asarray(content.get("dist8"), dtype=object).reshape(-1)
    return T, Lens(K=K, dist8=finite_array(dist8, (8,), f"{path}: dist8"))


def _read_object(root: Path, sequence: str) -> Float64[np.ndarray, "f 7"]:
    path = _path(root, sequence, "object")
    values = _load(path)
    if values.ndim != 2 or values.shape[1] != 7 or len(values) == 0:
        raise SourceError(
            f"{NAME}: {path} must hold 7 numbers per frame, got shape {values.shape}; download "
            "raw_seqs again"
        )
    return finite_array(values, values.shape, str(path))


def _path(root: Path, sequence: str, kind: str) -> Path:
    return root / "raw_seqs" / f"{sequence}.{kind}.npy"


def _load(path: Path) -> np.ndarray:
    check_regular(NAME, path)
    try:
        return load_npy(path, name=str(path))
    except OSError as error:
        raise SourceError(
            f"{NAME}: {path} cannot be read ({error.strerror}); download raw_seqs again"
        ) from error
    except ValueError as error:
        raise SourceError(f"{NAME}: {error}; download raw_seqs again") from error


def _read_dict(path: Path) -> Mapping[str, Any]:
    values = _load(path)
    content = values.item() if values.dtype == object and values.size == 1 else None
    if not isinstance(content, Mapping):
        raise SourceError(f"{NAME}: {path} must hold one dictionary; download raw_seqs again")
    return content


def finite_array(value: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Return finite numbers of a shape in float64.

    Raises:
        SourceError: If they are not; ``where`` names the array in the message.
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        found = f"shape {array.shape}" if array.shape != shape else "NaN or infinity"
        raise SourceError(
            f"{NAME}: {where} must hold finite numbers of shape {shape}, found {found}; "
            "download the file again"
        )
    return array


def _require_rigid(T: np.ndarray, where: str) -> None:
    R = T[:, :3, :3]
    off = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    bad = np.flatnonzero((off > _ROTATION_TOLERANCE) | (np.linalg.det(R) < 0))
    if len(bad):
        raise SourceError(
            f"{NAME}: {where}[{bad[0]}] is not a rotation ({len(bad)} of {len(T)} are wrong); "
            "download the file again"
        )
