"""Parse InterHand2.6M's JSON files into compact tables; all problems of a file in one error."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from model.hand import LEFT, NUM_JOINTS, RIGHT
from preprocess.records import SourceError
from preprocess.sources.annotations import read_json
from preprocess.sources.inventory import Inventory

NAME: Final = "interhand26m"
SIDES: Final = {"right": RIGHT, "left": LEFT}
_LARGEST_PX: Final = 1e6
"""A box beyond this is in no image."""
_HAND_TYPES: Final = (*SIDES, "interacting")

Key = tuple[str, str]
"""(capture, camera) or (capture, frame)."""
Entry = TypeVar("Entry")


class Image(NamedTuple):
    """One entry of ``images`` in data.json, without the unused fields."""

    id: int
    file_name: str
    capture: str
    subject: str
    seq_name: str
    camera: str
    frame: str


class Annotation(NamedTuple):
    """One entry of ``annotations``; 42 validity bits, bit j for joint j."""

    image_id: int
    bbox_xywh: tuple[float, float, float, float]
    """NaN where the file has no box with an area."""
    valid_bits: int
    hand_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """One camera of a capture, as shipped."""

    R: Float[np.ndarray, "3 3"]
    """``camrot``."""
    position_mm: Float[np.ndarray, " 3"]
    """``campos``, world frame."""
    K: Float[np.ndarray, "3 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ManoHand:
    """NeuralAnnot parameters of one hand, as shipped."""

    pose: Float[np.ndarray, " 48"]
    shape: Float[np.ndarray, " 10"]
    trans_m: Float[np.ndarray, " 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """Cameras, joints and MANO parameters of one split."""

    cameras: dict[Key, Camera]
    joints_mm: dict[Key, Float[np.ndarray, "42 3"]]
    """World."""
    mano: dict[Key, dict[int, ManoHand]]
    """MANO hands by slot."""


def annotation_file(split: str, name: str) -> str:
    """Return the path of an annotation file below the root."""
    return f"annotations/{split}/InterHand2.6M_{split}_{name}.json"


def read_tables(root: Path, split: str, *, with_mano: bool) -> Tables:
    """Read cameras, joints and, if requested and present, MANO parameters."""
    camera, joint_3d, mano = (
        root / annotation_file(split, name) for name in ("camera", "joint_3d", "MANO_NeuralAnnot")
    )
    return Tables(
        cameras=_parse(camera, _cameras_by_name(_mapping(camera)), _parse_camera),
        joints_mm=_parse(joint_3d, _mapping(joint_3d), _parse_joints),
        mano=_parse(mano, _mapping(mano), _parse_mano) if with_mano and mano.is_file() else {},
    )


def _cameras_by_name(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Transpose [capture][field][camera] to [capture][camera][field]."""
    turned: dict[str, dict[str, Any]] = {}
    for capture, fields in table.items():
        columns = {field: column for field, column in fields.items() if isinstance(column, dict)}
        turned[capture] = {
            name: {field: column[name] for field, column in columns.items() if name in column}
            for name in columns.get("campos", {})
        }
    return turned


def _parse_camera(item: Mapping[str, Any]) -> Camera:
    focal, centre = _numbers(item["focal"], 2), _numbers(item["princpt"], 2)
    K = np.array([[focal[0], 0.0, centre[0]], [0.0, focal[1], centre[1]], [0.0, 0.0, 1.0]])
    return Camera(R=_numbers(item["camrot"], 3, 3), position_mm=_numbers(item["campos"], 3), K=K)


def _parse_joints(item: Mapping[str, Any]) -> Float[np.ndarray, "42 3"]:
    # Not checked to be finite: invalid joints may hold anything, and validity is per image.
    return np.asarray(item["world_coord"], dtype=np.float64).reshape(2 * NUM_JOINTS, 3)


def _parse_mano(item: Mapping[str, Any]) -> dict[int, ManoHand]:
    return {
        slot: ManoHand(
            pose=_numbers(hand["pose"], 48),
            shape=_numbers(hand["shape"], 10),
            trans_m=_numbers(hand["trans"], 3),
        )
        for side, slot in SIDES.items()
        if (hand := item.get(side)) is not None
    }


def _numbers(value: Any, *shape: int) -> Float[np.ndarray, "..."]:
    array = np.asarray(value, dtype=np.float64).reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError("not finite")
    return array


def _mapping(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file of the form [capture][key]."""
    table = read_json(NAME, path)
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise SourceError(
            f"{NAME}: {path} does not map captures to entries; unpack the annotation again"
        )
    return table


def _parse(
    path: Path,
    table: Mapping[str, Mapping[str, Any]],
    parse: Callable[[Mapping[str, Any]], Entry],
) -> dict[Key, Entry]:
    """Apply ``parse`` to every entry, by (capture, key); all bad entries in one error."""
    parsed: dict[Key, Entry] = {}
    bad: list[str] = []
    for capture, entries in table.items():
        for key, item in entries.items():
            try:
                parsed[capture, key] = parse(item)
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
                bad.append(f"[{capture}][{key}]")
    if bad:
        raise SourceError(
            f"{NAME}: {len(bad)} of {len(bad) + len(parsed)} entries of {path} lack a key or hold "
            f"no finite numbers of the official shape (first: {bad[0]}); "
            "unpack the annotation again"
        )
    return parsed


def read_images(path: Path, tables: Tables) -> tuple[list[tuple[Image, Annotation]], int]:
    """Read data.json in order and check it against the other files.

    Returns:
        The images with their annotations, and the number of annotations without an image.

    Raises:
        SourceError: If there are no images, or images lack an annotation, a camera or joints, or
            are there twice; reports counts.
    """
    data = read_json(NAME, path, object_hook=_compact)
    lists = [data.get(key) if isinstance(data, dict) else None for key in ("images", "annotations")]
    images, annotations = lists
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise SourceError(
            f"{NAME}: {path} has no lists 'images' and 'annotations'; unpack the annotation again"
        )
    if not images:
        raise SourceError(
            f"{NAME}: {path} lists no images; unpack the annotation again, or remove its folder to "
            "build without this split"
        )
    by_image: dict[int, list[Annotation]] = {}
    for entry in annotations:
        if isinstance(entry, Annotation):
            by_image.setdefault(entry.image_id, []).append(entry)
    ids: set[int] = set()
    files: set[str] = set()
    pairs: list[tuple[Image, Annotation]] = []
    problems: dict[str, list[str]] = {}
    for index, image in enumerate(images):
        if not isinstance(image, Image):
            problems.setdefault("lack an official key", []).append(f"number {index}")
        elif image.id in ids or image.file_name in files:
            problems.setdefault("have an id or a file that another has", []).append(image.file_name)
        elif image.id not in by_image:
            problems.setdefault("have no complete annotation", []).append(image.file_name)
        elif len(by_image[image.id]) > 1:
            problems.setdefault("have several annotations", []).append(image.file_name)
        elif (image.capture, image.camera) not in tables.cameras:
            problems.setdefault("have no entry in camera.json", []).append(image.file_name)
        elif (image.capture, image.frame) not in tables.joints_mm:
            problems.setdefault("have no entry in joint_3d.json", []).append(image.file_name)
        else:
            pairs.append((image, by_image[image.id][0]))
        if isinstance(image, Image):
            ids.add(image.id)
            files.add(image.file_name)
    if problems:
        found = " and ".join(
            f"{len(names)} {problem} (first: {names[0]})" for problem, names in problems.items()
        )
        raise SourceError(
            f"{NAME}: of {len(images)} images ({len(annotations)} annotations) in {path} {found}; "
            "unpack all annotations of one release again"
        )
    return pairs, len(annotations) - len(pairs)


def list_images(inventory: Inventory, split: str, images: Iterable[Image]) -> None:
    """Compare the folders of a split's images with those in data.json, down to the sequences.

    Raises:
        SourceError: If a folder cannot be listed.
    """
    listed = {tuple(f"{image.file_name}/".split("/")[:2]) for image in images}
    folder = f"images/{split}"
    captures = {capture for capture, _ in listed}
    there = {
        f"{capture}/{sequence}"
        for capture in inventory.folders(folder, captures.__contains__)
        for sequence in inventory.folders(
            f"{folder}/{capture}", {s for c, s in listed if c == capture}.__contains__
        )
    }
    names = ["/".join(place) for place in listed]
    inventory.expect(f"sequences of the {split} annotation", names, folder, there)


def _whole(value: Any) -> int:
    """Return a number of the file that must be whole and not negative."""
    number = int(value)
    if (isinstance(value, float) and number != value) or not 0 <= number < 2**31:
        raise ValueError(value)
    return number


def _box(value: Any) -> tuple[float, float, float, float]:
    """Return x, y, width and height; NaN unless they are a box with an area."""
    x, y, width, height = map(float, value)
    if width > 0 and height > 0 and max(abs(x), abs(y), width, height) <= _LARGEST_PX:
        return x, y, width, height
    return math.nan, math.nan, math.nan, math.nan


def _compact(item: dict[str, Any]) -> Any:
    """Compact an entry of data.json during parsing: 1.4 million of them stay in memory."""
    try:
        if "joint_valid" in item:
            flat = np.asarray(item["joint_valid"]).reshape(2 * NUM_JOINTS).tolist()
            if item["hand_type"] not in _HAND_TYPES:
                return None
            return Annotation(
                image_id=_whole(item["image_id"]),
                bbox_xywh=_box(item["bbox"]),
                valid_bits=sum(1 << j for j, valid in enumerate(flat) if valid),
                hand_type=intern(item["hand_type"]),
            )
        if "file_name" in item:
            return Image(
                id=_whole(item["id"]),
                file_name=str(item["file_name"]),
                capture=intern(str(item["capture"])),
                subject=intern(str(item["subject"])),
                seq_name=intern(str(item["seq_name"])),
                camera=intern(str(item["camera"])),
                frame=intern(str(_whole(item["frame_idx"]))),
            )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None  # counted and named by read_images, which knows the file
    return item
