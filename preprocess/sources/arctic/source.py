"""ARCTIC: two hands manipulate an articulated object; eight static cameras, one egocentric; 30 fps.

``root`` is the folder with ``images``, ``raw_seqs`` and ``meta`` (the official ``data``). Without
``images``, ``cropped_images`` is used, and rows hold the affine map of their crop. Rows are the
official images of all nine views: files 10 to F - 11 of a sequence of F captured frames, since the
first and last ones may be black. File i shows frame ``i - ioi_offset`` of the capture, whose
``world2cam`` is in metres and object translations in millimetres. Hands were fitted with MANO's
left model as shipped (smplx issue 48). The labels are in undistorted space, but the images of view
0 are distorted: a build undistorts them (``DatasetSource.lens_of``).

Splits: ``p1_*`` has the eight static cameras, ``p2_*`` the egocentric one; the sequences come from
``splits_json``, or from the equivalent rule: val is s05, test is s03, whose labels are hidden. The
official subsets are sampled exactly as in the official code.

Source:
    The dataset's src/arctic/split.py, src/datasets/dataset_utils.py, src/arctic/processing.py
    (described in the dataset notes, 5).
"""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from model.hand import JointSet
from model.mano.files import ManoModels
from preprocess.records import DatasetSource, LabelJob, Lens, ObjectFile, Rows, SourceError
from preprocess.sources.annotations import require
from preprocess.sources.arctic.check import checked_files, cross_check
from preprocess.sources.arctic.crop import ego_affine
from preprocess.sources.arctic.files import (
    CROPPED,
    EGO,
    NAME,
    OBJECTS,
    VIEWS,
    Rig,
    largest_file_number,
    list_labelled,
    list_pictured,
    read_lens,
    read_num_frames,
    read_protocol,
    read_rigs,
)
from preprocess.sources.arctic.labels import View, read_views
from preprocess.sources.inventory import Inventory

BORDER: Final = 10
"""Frames at either end of a sequence that are not in the official set."""
VIEWS_OF: Final = {"p1": tuple(range(1, VIEWS)), "p2": (EGO,)}
VAL_SUBJECT: Final = "s05"
TEST_SUBJECT: Final = "s03"
SUBSETS: Final = {
    "train": {"small": 100_000, "tiny": 12_000, "mini": 300},
    "val": {"small": 12_000, "tiny": 500, "mini": 80},
    "test": {"small": 12_000, "tiny": 6_000, "mini": 200},
}
OFFICIAL_COUNTS: Final = {
    "p1_train": 1_496_400, "p1_val": 201_624, "p2_train": 187_050, "p2_val": 25_203,
} | {
    f"{protocol}_{subset}{split}": size
    for protocol in VIEWS_OF
    for split, sizes in SUBSETS.items()
    for subset, size in sizes.items()
}  # fmt: skip
"""Of all 339 sequences; the number of test images is not published."""
LICENCE: Final = "ARCTIC: non-commercial scientific research, no redistribution"
CITATION: Final = (
    "Fan, Taheri, Tzionas, Kocabas, Kaufmann, Black, Hilliges: ARCTIC: A Dataset for Dexterous "
    "Bimanual Hand-Object Manipulation, CVPR 2023"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A sequence found below the root."""

    name: str
    """``sXX/<name>``."""
    num_frames: int
    has_labels: bool

    @property
    def num_files(self) -> int:
        """Return the number of official images of one view."""
        return max(0, self.num_frames - 2 * BORDER)


def open_source(root: Path, mano: ManoModels | None) -> DatasetSource:
    """Open ARCTIC below ``root``; subjects and sequences may be missing.

    Raises:
        SourceError: If nothing is found, or a file that a sequence needs is missing or broken.
    """
    require(NAME, root, ["meta/misc.json"], ["raw_seqs", "meta/object_vtemplates"])
    rigs = read_rigs(root)
    protocols = {name: read_protocol(root, name) for name in VIEWS_OF}
    inventory = Inventory(dataset=NAME, root=root)
    pictured = list_pictured(inventory)
    folder = next((name for name, sequences in pictured.items() if sequences), next(iter(pictured)))
    found = _find(inventory, folder, pictured[folder], protocols, rigs)
    lenses = {f.name: read_lens(root, f.name) for f in found if f.has_labels}
    in_files = lenses
    if folder == CROPPED:
        in_files = {name: _scaled(lens, rigs[name[:3]]) for name, lens in lenses.items()}
    first = _first_rows(found)
    rows, splits = _rows(found, folder), _splits(found, first, protocols)
    files = checked_files(root)
    return DatasetSource(
        dataset=NAME,
        joint_set=JointSet.smplx,
        licence=LICENCE,
        citation=CITATION,
        official_counts=OFFICIAL_COUNTS,
        root=root,
        rows=rows,
        splits=splits,
        label_job=functools.partial(_label_job, root, folder, found, first, rigs, lenses, mano),
        objects=_objects(root, found),
        left_as_shipped=True,
        lenses=tuple(in_files.values()),
        lens_of=_lens_of(found, list(lenses)),
        cross_check=functools.partial(cross_check, root, files, rigs, lenses, mano, rows, splits)
        if files
        else None,
        notes=_notes(found, protocols, folder, pictured) | inventory.notes(),
    )


# --- sequences ------------------------------------------------------------------------------------


def _find(
    inventory: Inventory,
    folder: str,
    pictured: Sequence[str],
    protocols: Mapping[str, Mapping[str, Sequence[str]] | None],
    rigs: Mapping[str, Rig],
) -> list[_Found]:
    """Return the sequences in the order of the first protocol, then the others by name."""
    root = inventory.root
    labelled = list_labelled(inventory)
    if not pictured:
        raise SourceError(
            f"{NAME}: {root / folder} holds no sequence such as s01/box_use_01; unpack the "
            f"images, or point root= at the folder that holds {folder}, raw_seqs and meta"
        )
    if no_rig := sorted({name.split("/")[0] for name in pictured} - rigs.keys()):
        raise SourceError(
            f"{NAME}: {root / 'meta' / 'misc.json'} has no cameras of {', '.join(no_rig)}; "
            "download meta again"
        )
    listed = dict.fromkeys(
        name for lists in protocols.values() if lists for part in lists.values() for name in part
    )
    inventory.expect("sequences of the protocols", listed, folder, pictured)
    inventory.expect("sequences of raw_seqs", labelled - listed.keys(), folder, pictured)
    if listed:
        inventory.expect("sequences with images", pictured, "splits_json", listed)
    public = [name for name in pictured if not name.startswith(f"{TEST_SUBJECT}/")]
    inventory.expect("sequences with images and public labels", public, "raw_seqs", labelled)
    place = {name: i for i, name in enumerate(listed)}
    return [
        _Found(
            name=name,
            num_frames=(
                read_num_frames(root, name)
                if name in labelled
                else largest_file_number(inventory, f"{folder}/{name}")
                - rigs[name.split("/")[0]].ioi_offset
                + 1
            ),
            has_labels=name in labelled,
        )
        for name in sorted(pictured, key=lambda name: (place.get(name, len(place)), name))
    ]


def _objects(root: Path, found: Sequence[_Found]) -> tuple[ObjectFile, ...]:
    """Return all 11 objects; only those that occur need a mesh."""
    seen = {f.name.split("/")[1].split("_")[0] for f in found}
    files = []
    for name in OBJECTS:
        folder = f"meta/object_vtemplates/{name}"
        mesh, parts = f"{folder}/mesh.obj", f"{folder}/parts.json"
        if name in seen:
            require(NAME, root, [mesh, parts])
        is_there = (root / mesh).is_file() and (root / parts).is_file()
        files.append(
            ObjectFile(
                name=name,
                mesh=mesh if is_there else "",
                metres_per_unit=1e-3,
                moving_part=parts if is_there else "",
            )
        )
    return tuple(files)


def _scaled(lens: Lens, rig: Rig) -> Lens:
    """Return a lens for the pixels of its cropped images; distortion coefficients are unchanged."""
    A = np.vstack([ego_affine(rig.image_size_wh[EGO]), [0.0, 0.0, 1.0]])
    return Lens(K=A @ lens.K, dist8=lens.dist8)


def _notes(
    found: Sequence[_Found],
    protocols: Mapping[str, Mapping[str, list[str]] | None],
    folder: str,
    pictured: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    notes: dict[str, Any] = {
        "images": folder,
        "sequences": len(found),
        "sequences_without_labels": sum(not f.has_labels for f in found),
        "views": "0 on the head, undistorted; 1 to 8 still",
    }
    unread = [name for name, sequences in pictured.items() if sequences and name != folder]
    if unread:
        notes["images"] = f"{folder}; {unread[0]} is there too and was not read"
    rule = [name for name, lists in protocols.items() if lists is None]
    if rule:
        notes["splits"] = (
            f"{' and '.join(rule)} by the rule val = {VAL_SUBJECT}, test = {TEST_SUBJECT}: "
            "splits_json is not there"
        )
    return notes


# --- rows -----------------------------------------------------------------------------------------


def _first_rows(found: Sequence[_Found]) -> Int64[np.ndarray, " k"]:
    """Return the first row of each sequence, and the number of rows at the end."""
    return np.cumsum([0, *(f.num_files * VIEWS for f in found)]).astype(np.int64)


def _rows(found: Sequence[_Found], folder: str) -> Rows:
    """Return the rows, ordered by sequence, then file, then view."""
    image: list[str] = []
    sequence: list[str] = []
    frames: list[np.ndarray] = []
    views = [str(view) for view in range(VIEWS)]
    for f in found:
        files = range(BORDER, BORDER + f.num_files)
        image += [f"{folder}/{f.name}/{view}/{i:05d}.jpg" for i in files for view in views]
        sequence += [f.name] * (VIEWS * f.num_files)
        frames.append(np.repeat(np.arange(BORDER, BORDER + f.num_files, dtype=np.int32), VIEWS))
    return Rows(
        image=image,
        sequence=sequence,
        camera=views * (len(image) // VIEWS),
        subject=[name.split("/")[0] for name in sequence],
        frame_idx=np.concatenate(frames),
    )


def _lens_of(found: Sequence[_Found], named: Sequence[str]) -> np.ndarray:
    """Return the lens index of each row; -1 = none."""
    number = {name: i for i, name in enumerate(named)}
    parts = []
    for f in found:
        own = np.full((f.num_files, VIEWS), -1, np.int32)
        own[:, EGO] = number.get(f.name, -1)
        parts.append(own.reshape(-1))
    return np.concatenate(parts)


def _splits(
    found: Sequence[_Found],
    first: Int64[np.ndarray, " k"],
    protocols: Mapping[str, Mapping[str, list[str]] | None],
) -> dict[str, Int64[np.ndarray, " _"]]:
    """Return the official splits and their subsets, in the order of the official code."""
    splits: dict[str, np.ndarray] = {}
    place = {f.name: i for i, f in enumerate(found)}
    for protocol, views in VIEWS_OF.items():
        lists = protocols[protocol] or _by_rule([f.name for f in found])
        for split, names in lists.items():
            rows = [
                (first[i] + np.arange(found[i].num_files)[:, None] * VIEWS + np.array(views))
                for i in (place[name] for name in names if name in place)
            ]
            whole = np.concatenate([r.reshape(-1) for r in rows]) if rows else np.empty(0, np.int64)
            splits[f"{protocol}_{split}"] = whole.astype(np.int64)
            for subset, size in SUBSETS[split].items():
                if size <= len(whole):
                    splits[f"{protocol}_{subset}{split}"] = whole[_drawn(len(whole), size)]
    return splits


def _by_rule(names: Sequence[str]) -> dict[str, list[str]]:
    subjects = {"val": VAL_SUBJECT, "test": TEST_SUBJECT}
    lists = {
        split: [name for name in names if name.startswith(f"{subject}/")]
        for split, subject in subjects.items()
    }
    held = {name for part in lists.values() for name in part}
    return {"train": [name for name in names if name not in held], **lists}


def _drawn(num: int, size: int) -> list[int]:
    """Return the indices that the official code samples: Python's generator, seeded with 1."""
    generator = random.Random(1)
    generator.randint(0, 100)  # the official code calls this once first
    return generator.sample(range(num), size)


def _label_job(
    root: Path,
    folder: str,
    found: Sequence[_Found],
    first: Int64[np.ndarray, " k"],
    rigs: Mapping[str, Rig],
    lenses: Mapping[str, Lens],
    mano: ManoModels | None,
    official_idx: Sequence[int],
) -> LabelJob:
    """Return the label job for some rows; it carries only the cameras they need."""
    wanted = np.asarray(official_idx, dtype=np.int64)
    sequence = np.searchsorted(first, wanted, side="right") - 1
    file, view = np.divmod(wanted - first[sequence], VIEWS)
    views = []
    for s, v in np.unique(np.stack((sequence, view), axis=1), axis=0).tolist():
        one = found[s]
        if not one.has_labels:
            continue
        rows = np.flatnonzero((sequence == s) & (view == v))
        rig = rigs[one.name.split("/")[0]]
        views.append(
            View(
                sequence=one.name,
                view=v,
                rig=rig,
                lens=lenses[one.name],
                frames=file[rows] + BORDER - rig.ioi_offset,
                rows=rows,
            )
        )
    return functools.partial(read_views, root, views, len(wanted), mano, cropped=folder == CROPPED)
