"""Your own images: ``root`` has ``annotations.jsonl`` (or ``.parquet``) and the images it names.

Splits are what the records say; records without ``split`` are in ``train``, and the last tenth of
these, in order of sequence and frame, is also ``val10``, the others ``train90``: neighbouring
frames look alike, so a random hold-out would be no test.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from model.hand import JointSet
from model.mano.files import ManoModels
from preprocess.records import DatasetSource, LabelJob, ObjectFile, Rows, SourceError
from preprocess.sources.folder.files import Annotations, Place, open_annotations, read_images
from preprocess.sources.folder.labels import read_labels
from preprocess.sources.folder.mistakes import Sampled, mistakes
from preprocess.sources.folder.records import Header, Image
from preprocess.sources.inventory import Inventory

_NAME: Final = "folder"
_SUFFIXES: Final = (".jpg", ".jpeg", ".png")


@dataclass(kw_only=True, slots=True)
class _Columns:
    """What the first pass keeps of each record."""

    places: list[Place] = field(default_factory=list)
    image: list[str] = field(default_factory=list)
    sequence: list[str] = field(default_factory=list)
    camera: list[str] = field(default_factory=list)
    subject: list[str] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)
    has_joints_2d: bool = False
    splits: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    without_split: list[int] = field(default_factory=list)


def open_source(root: Path, mano: ManoModels | None) -> DatasetSource:
    """Open a folder of images with annotations.

    Raises:
        SourceError: If the annotations do not have the format (names file, line and key), name an
            image twice or an unknown object, or their numbers cannot be what the header says.
    """
    if not root.is_dir():
        raise SourceError(f"{_NAME}: root={str(root)!r} is no folder")
    annotations = open_annotations(root)
    header = annotations.header
    sampled = Sampled(header=header)
    columns = _read(annotations, sampled)
    found = mistakes(sampled)
    if errors := [mistake.text for mistake in found if mistake.is_certain]:
        raise SourceError(f"{_NAME}: {annotations.path}: {'; '.join(errors)}")
    notes = _images_beside(root, columns.image).notes()
    notes["warnings"] = [mistake.text for mistake in found] + notes.get("warnings", [])
    return DatasetSource(
        dataset=_NAME,
        joint_set=JointSet[header.joint_set],
        licence=header.licence,
        citation=header.citation,
        official_counts={},
        root=root,
        rows=Rows(
            image=columns.image,
            sequence=columns.sequence,
            camera=columns.camera,
            subject=columns.subject,
            frame_idx=np.array(columns.frame, np.int32),
        ),
        splits=_splits(columns),
        label_job=functools.partial(_label_job, root, annotations, columns.places, mano),
        objects=tuple(
            ObjectFile(name=o.name, mesh=o.mesh, metres_per_unit=o.metres_per_unit)
            for o in header.objects
        ),
        left_as_shipped=header.mano_left == "as_shipped",
        official_boxes=True,
        optional_labels=("joints_2d",) if columns.has_joints_2d else (),
        notes={"name": header.name, **{key: note for key, note in notes.items() if note}},
    )


def _images_beside(root: Path, images: Sequence[str]) -> Inventory:
    """Account of the images that lie beside those of the records and are named by none."""
    inventory = Inventory(dataset=_NAME, root=root)
    named: dict[str, set[str]] = defaultdict(set)
    for image in images:
        path = PurePosixPath(image)
        named[str(path.parent)].add(path.name)
    for folder, names in sorted(named.items()):
        if (root / folder).is_dir():
            inventory.files(
                "" if folder == "." else folder,
                names.__contains__,
                is_known=lambda name: not name.lower().endswith(_SUFFIXES),
            )
    return inventory


def _label_job(
    root: Path,
    annotations: Annotations,
    places: list[Place],
    mano: ManoModels | None,
    official_idx: Sequence[int],
) -> LabelJob:
    chosen = [places[i] for i in official_idx]
    return functools.partial(read_labels, root, annotations, chosen, mano)


def _read(annotations: Annotations, sampled: Sampled) -> _Columns:
    columns = _Columns()
    line_of: dict[str, int] = {}
    counts: dict[tuple[str, str], int] = defaultdict(int)
    objects = {entry.name for entry in annotations.header.objects}
    if wrong := _header_problem(annotations.header):
        raise SourceError(f"{_NAME}: the header of {annotations.path}: {wrong}")
    for place, image in read_images(annotations):
        where = annotations.where(place)
        if wrong := _problem(image, objects):
            raise SourceError(f"{_NAME}: {where}: {wrong}")
        first = line_of.setdefault(image.image, place.line)
        if first != place.line:
            raise SourceError(
                f"{_NAME}: {where} names {image.image!r} a second time, after line {first}; put "
                "both hands of an image into one record"
            )
        sequence = image.sequence or str(PurePosixPath(image.image).parent)
        number = len(columns.image)
        columns.places.append(place)
        columns.image.append(image.image)
        columns.sequence.append(sequence)
        columns.camera.append(image.camera)
        columns.subject.append(image.subject)
        next_frame = counts[sequence, image.camera]
        columns.frame.append(next_frame if image.frame is None else image.frame)
        counts[sequence, image.camera] = next_frame + 1
        if image.split is None:
            columns.without_split.append(number)
        else:
            for name in [image.split] if isinstance(image.split, str) else image.split:
                columns.splits[name].append(number)
        columns.has_joints_2d |= any(hand.joints_2d is not None for hand in image.hands)
        sampled.add(image)
    return columns


def _header_problem(header: Header) -> str:
    order, names = header.joint_order, [entry.name for entry in header.objects]
    if not isinstance(order, str) and len(set(order)) < len(order):
        twice = next(joint for joint in order if order.count(joint) > 1)
        return f"joint_order names joint {twice} twice"
    if len(set(names)) < len(names):
        return "objects names an object twice"
    outside = [entry.mesh for entry in header.objects if entry.mesh and not _is_below(entry.mesh)]
    if outside:
        return f"objects: expected a mesh below the folder, got {outside[0]!r}"
    return ""


def _is_below(path: str) -> bool:
    return not (path.startswith("/") or "\\" in path or "\0" in path) and not (
        {"", ".", ".."} & set(path.split("/"))
    )


def _problem(image: Image, objects: set[str]) -> str:
    """Return what contradicts in one record; the format itself was checked."""
    path = image.image
    if not path.lower().endswith(_SUFFIXES):
        return f"image: expected a file that ends in {', '.join(_SUFFIXES)}, got {path!r}"
    if not _is_below(path):
        return f"image: expected a path below the folder, with '/' and without '..', got {path!r}"
    sides = [hand.side for hand in image.hands]
    if len(set(sides)) != len(sides):
        return f"hands: an image has at most one {sides[0]} hand"
    unknown = [placed.name for placed in image.objects if placed.name not in objects]
    if unknown:
        return f"objects: the header has no object {unknown[0]!r}"
    if image.K is not None:
        if image.focal_px is not None:
            return "K and focal_px are given, expected one of them"
        (fx, _, _), (below, fy, _), last = image.K
        if not (fx > 0 and fy > 0 and below == 0 and last == [0, 0, 1]):
            return f"K: expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]], got {image.K}"
    for key, pose in _poses(image):
        R = np.array(pose)[:3, :3]
        if np.abs(R @ R.T - np.eye(3)).max() > 1e-2 or np.linalg.det(R) < 0:
            return f"{key}: the first three columns are no rotation"
        if len(pose) == 4 and pose[3] != [0, 0, 0, 1]:
            return f"{key}: the last row must be [0, 0, 0, 1]"
    for i, hand in enumerate(image.hands):
        if hand.bbox_xyxy is not None:
            x0, y0, x1, y1 = hand.bbox_xyxy
            if x1 <= x0 or y1 <= y0:
                return (
                    f"hands[{i}].bbox_xyxy: expected left, top, right, bottom, got {hand.bbox_xyxy}"
                )
    return ""


def _poses(image: Image) -> list[tuple[str, list[list[float]]]]:
    poses = [(f"objects[{i}].pose", placed.pose) for i, placed in enumerate(image.objects)]
    world = image.T_world_from_cam
    return poses + ([] if world is None else [("T_world_from_cam", world)])


def _splits(columns: _Columns) -> dict[str, np.ndarray]:
    splits = {name: np.array(rows, np.int64) for name, rows in columns.splits.items()}
    unstated = np.array(columns.without_split, np.int64)
    if len(unstated):
        splits["train"] = np.union1d(splits.get("train", unstated), unstated)
    if "val10" not in splits and "train90" not in splits and len(unstated) > 1:
        names = [(columns.sequence[i], columns.camera[i], columns.frame[i]) for i in unstated]
        order = sorted(range(len(unstated)), key=names.__getitem__)
        num_val = max(1, len(unstated) // 10)
        splits["val10"] = np.sort(unstated[order[-num_val:]])
        splits["train90"] = np.setdiff1d(splits["train"], splits["val10"])
    return splits
