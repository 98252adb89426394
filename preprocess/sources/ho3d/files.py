"""HO-3D's file tree: frame lists, version detection, calibration, evaluation ground truth."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float64

from model.hand import NUM_JOINTS
from preprocess.records import SourceError
from preprocess.sources.annotations import check_regular, read_number_rows
from preprocess.sources.inventory import Inventory

NAME: Final = "ho3d"
LISTS: Final = ("train", "evaluation")
SUFFIXES: Final = {"v2": ".png", "v3": ".jpg"}
"""Suffixes of colour images."""
NUM_LISTED: Final = {
    "v2": {"train": 66_034, "evaluation": 11_524},
    "v3": {"train": 83_325, "evaluation": 20_137},
}
SINGLE: Final = "single"
"""Camera name of a single-camera recording."""

_BESIDE_RGB: Final = ("depth", "meta", "seg", "segr")
_IMAGE: Final = re.compile(r"[0-9]+\.(png|jpg)")
_LINE: Final = re.compile(r"([A-Za-z0-9_-]+)/([0-9]{1,9})")
_OF_SEVERAL: Final = re.compile(r"([A-Za-z]+[0-9]+)([0-9])")
_RIGID: Final = 1e-3
"""Tolerance for the orthonormality of a rotation printed as text."""


class ListedFrame(NamedTuple):
    """One line of ``train.txt`` or ``evaluation.txt``."""

    part: str
    """``train`` or ``evaluation``."""
    sequence: str
    stem: str
    """File stem of the frame as listed, with leading zeros."""

    @property
    def folder(self) -> str:
        """Return the sequence's folder relative to the root."""
        return f"{self.part}/{self.sequence}"


class Version(NamedTuple):
    """HO-3D version of a tree, and the evidence for it."""

    name: str
    """``v2`` or ``v3``."""
    found_by: str


def recording_of(sequence: str) -> tuple[str, str]:
    """Return (recording, camera) of a sequence: ABF13 is camera 3 of ABF1, SM2 is a recording.

    Two trailing digits mean a multi-camera recording: the 11 groups of the toolkit (ABF1 to SMu4)
    and no other official sequence.
    """
    match = _OF_SEVERAL.fullmatch(sequence)
    return (match[1], match[2]) if match else (sequence, SINGLE)


def read_list(root: Path, part: str) -> list[ListedFrame]:
    """Read ``train.txt`` or ``evaluation.txt`` in order.

    Raises:
        SourceError: If a line is not ``SEQUENCE/FRAME`` or is repeated, or train has none; reports
            counts.
    """
    path = root / f"{part}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{NAME}: cannot read {path} as text ({error}); unpack it again"
        ) from error
    frames: list[ListedFrame] = []
    bad: list[str] = []
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.strip())
        if match:
            frames.append(ListedFrame(part, match[1], match[2]))
        elif line.strip():
            bad.append(f"line {number} is {line[:60]!r}")
    if bad:
        raise SourceError(
            f"{NAME}: {len(bad)} lines of {path} are not SEQUENCE/FRAME as in ABF10/0000 (first: "
            f"{bad[0]}); unpack the list again"
        )
    if not frames and part == "train":  # another evaluation is a user's own choice
        raise SourceError(f"{NAME}: {path} lists no frames; unpack the list again")
    twice = [frame for frame, count in Counter(frames).items() if count > 1]
    if twice:
        raise SourceError(
            f"{NAME}: {path} lists {len(twice)} frames more than once (first: "
            f"{twice[0].sequence}/{twice[0].stem}); expected each once, unpack the list again"
        )
    return frames


def list_images(inventory: Inventory, frames: Sequence[ListedFrame]) -> dict[str, list[str]]:
    """Return the sorted file names of the images of each listed sequence, by its folder.

    Raises:
        SourceError: If a folder cannot be listed.
    """
    images: dict[str, list[str]] = {}
    for part in LISTS:
        listed = {frame.sequence for frame in frames if frame.part == part}
        there = inventory.folders(part, listed.__contains__)
        inventory.expect(f"sequences of {part}.txt", listed, f"{part}/", there)
        for sequence in there:
            folder = f"{part}/{sequence}"
            if inventory.folders(folder, "rgb".__eq__, is_known=_BESIDE_RGB.__contains__):
                images[folder] = inventory.files(f"{folder}/rgb", _IMAGE.fullmatch)
    return images


def find_version(
    root: Path, frames: Sequence[ListedFrame], images: Mapping[str, Sequence[str]]
) -> Version:
    """Detect the version by image format, else by folder name, else by the lengths of the lists.

    Raises:
        SourceError: If the tree mixes both versions, or the version cannot be determined.
    """
    first: dict[str, Path] = {}
    for folder, names in images.items():
        for suffix in SUFFIXES.values():
            name = next((name for name in names if name.endswith(suffix)), None)
            if name is not None:
                first.setdefault(suffix, root / folder / "rgb" / name)
    if len(first) > 1:
        examples = " and ".join(str(path) for path in first.values())
        raise SourceError(
            f"{NAME}: {root} holds PNG images as of v2 and JPEG images as of v3 ({examples}); the "
            "two versions label their frames differently, unpack each into a folder of its own"
        )
    for name, suffix in SUFFIXES.items():
        if suffix in first:
            return Version(name, f"images are {suffix}")
    named = re.search(r"v([23])(?![0-9])", root.absolute().name.lower())
    if named:
        return Version(f"v{named[1]}", "name of the folder, there are no images")
    listed = {part: sum(f.part == part for f in frames) for part in LISTS}
    for name, official in NUM_LISTED.items():
        if listed == official:
            return Version(name, "lengths of the lists, there are no images")
    raise SourceError(
        f"{NAME}: no listed sequence below {root} has images in rgb/; expected .png (v2) or .jpg "
        "(v3), unpack the dataset or point root= at the folder that holds train.txt"
    )


def count_unlisted(
    frames: Sequence[ListedFrame], images: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Return the number of images that no list names, by folder; v3 has some without labels."""
    listed = {(frame.folder, frame.stem) for frame in frames}
    unlisted = Counter(
        folder
        for folder, names in images.items()
        for name in names
        if (folder, name.partition(".")[0]) not in listed
    )
    return dict(sorted(unlisted.items()))


# --- calibration ----------------------------------------------------------------------------------


def read_camera_poses(
    root: Path, sequences: Iterable[str]
) -> dict[str, Float64[np.ndarray, "4 4"]]:
    """Return ``T_world_from_cam`` of the sequences in ``calibration/``; OpenCV axes, metres.

    ``cam_orders.txt`` lists the cameras of a recording; ``trans_<i>.txt`` is the pose of the i-th
    in that list. Each recording has its own world frame, that of its calibration.

    Raises:
        SourceError: If a file of a calibrated recording is missing or malformed.

    Source:
        HO-3D vis_pcl_all_cameras.py: point clouds in OpenCV axes of sequence ``<recording>
        <cam_orders[i]>`` are put together with ``trans_<i>``.
    """
    poses: dict[str, Float64[np.ndarray, "4 4"]] = {}
    for sequence in sorted(set(sequences)):
        recording, camera = recording_of(sequence)
        folder = root / "calibration" / recording / "calibration"
        if camera == SINGLE or not folder.is_dir():
            continue
        order = [round(value) for value in _read_numbers(folder / "cam_orders.txt")]
        if int(camera) in order:
            poses[sequence] = _read_pose(folder / f"trans_{order.index(int(camera))}.txt")
    return poses


def _read_pose(path: Path) -> Float64[np.ndarray, "4 4"]:
    values = _read_numbers(path)
    T = np.array(values).reshape(4, 4) if len(values) == 16 else np.zeros((4, 4))
    R = T[:3, :3]
    is_rigid = np.abs(R @ R.T - np.eye(3)).max() < _RIGID and np.linalg.det(R) > 0
    if not is_rigid or np.abs(T[3] - [0, 0, 0, 1]).max() > _RIGID:
        raise SourceError(
            f"{NAME}: {path} is not a camera pose ({len(values)} numbers); expected a rigid 4 x 4 "
            "matrix, unpack the calibration again"
        )
    return T


def _read_numbers(path: Path) -> list[float]:
    check_regular(NAME, path)
    try:
        values = [float(word) for word in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{NAME}: cannot read {path} as numbers ({error}); unpack the calibration again"
        ) from error
    if not values or not all(map(math.isfinite, values)):
        raise SourceError(f"{NAME}: {path} holds no finite numbers; unpack the calibration again")
    return values


# --- evaluation truth -----------------------------------------------------------------------------


def read_truth(root: Path, num: int) -> tuple[str, Float64[np.ndarray, "n 21 3"]] | None:
    """Return path and rows of ``evaluation_xyz.json``; None without one.

    Searches ``root`` and its parent folder; the path is relative to ``root``. Rows are in the order
    of ``evaluation.txt``; OpenGL axes, MANO's joint order, metres. The meshes in
    ``evaluation_verts.json`` are not used as labels.

    Raises:
        SourceError: If its rows do not match ``evaluation.txt``.
    """
    places = [root, root.absolute().parent]
    path = next((p for d in places if (p := d / "evaluation_xyz.json").is_file()), None)
    if path is None:
        return None
    joints = read_number_rows(NAME, path, (NUM_JOINTS, 3))
    if len(joints) != num:
        raise SourceError(
            f"{NAME}: {path} has {len(joints)} rows but {root / 'evaluation.txt'} lists {num} "
            "frames; expected the truth of the same version, put that one into the root"
        )
    return os.path.relpath(path, root), joints
