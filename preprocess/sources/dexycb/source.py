"""DexYCB: one hand grasps one of several YCB objects; eight cameras, 640 x 480 pixels.

``root`` holds the subjects' folders, ``calibration`` and ``models``. Rows are those listed in
``meta.yml``, in the toolkit's order: sequence, camera, frame (frame fastest). The world frame is
that of the master camera. Hands were fitted with MANO's left model as shipped (smplx issue 48).

Splits ``s0`` to ``s3`` with ``train``, ``val``, ``test`` follow the official rules, which index
subjects and cameras in the official lists, and a sequence by its position among its subject's
sequences that are present: they equal the official splits only if a subject has all its 100.

Source:
    dex-ycb-toolkit dex_ycb.py, README.md (described in the dataset notes, 2).
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Int64

from model.hand import JointSet
from model.mano.files import ManoModels
from pipeline.store.schema import SYNTHETIC_FILE
from preprocess.records import (
    DatasetSource,
    LabelJob,
    ObjectFile,
    Rows,
    SourceError,
)
from preprocess.sources.annotations import require
from preprocess.sources.dexycb.check import cross_check
from preprocess.sources.dexycb.files import (
    HEIGHT,
    NAME,
    SERIALS,
    WIDTH,
    Meta,
    read_betas,
    read_extrinsics,
    read_intrinsics,
    read_meta,
)
from preprocess.sources.dexycb.labels import Recording, View, read_picture, read_views
from preprocess.sources.inventory import Inventory, first_names
from preprocess.sources.ycb import YCB_NAMES, find_mesh

SUBJECTS: Final = (
    "20200709-subject-01", "20200813-subject-02", "20200820-subject-03", "20200903-subject-04",
    "20200908-subject-05", "20200918-subject-06", "20200928-subject-07", "20201002-subject-08",
    "20201015-subject-09", "20201022-subject-10",
)  # fmt: skip
SEQUENCES_PER_SUBJECT: Final = 100
OFFICIAL_COUNTS: Final = {
    "s0_train": 465_504, "s0_val": 23_200, "s0_test": 93_264,
    "s1_train": 407_088, "s1_val": 58_592, "s1_test": 116_288,
    "s2_train": 436_476, "s2_val": 72_746, "s2_test": 72_746,
    "s3_train": 436_416, "s3_val": 58_192, "s3_test": 87_360,
}  # fmt: skip
"""Number of images, with or without a hand, as the protocols count them."""
LICENCE: Final = "DexYCB: CC BY-NC 4.0"
CITATION: Final = (
    "Chao, Yang, Xiang, Molchanov, Handa, Tremblay, Narang, Van Wyk, Iqbal, Birchfield, Kautz, "
    "Fox: DexYCB: A Benchmark for Capturing Hand Grasping of Objects, CVPR 2021"
)
_SEQUENCE: Final = re.compile(r"\d{8}_\d{6}")
_SUBJECT: Final = re.compile(r"\d{8}-subject-[^.]*")
_THREADS: Final = 16  # hides the latency of a network disk, about a millisecond per file


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A sequence folder found below the root."""

    subject: int
    """Index into ``SUBJECTS``."""
    position: int
    """Position among the sequences of its subject."""
    folder: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _RowPlaces:
    """Origin of each row; arrays in official order."""

    subject: Int64[np.ndarray, " n"]
    position: Int64[np.ndarray, " n"]
    serial: Int64[np.ndarray, " n"]
    """Index into ``SERIALS``."""


def open_source(root: Path, mano: ManoModels | None) -> DatasetSource:
    """Open DexYCB below ``root``; subjects and sequences may be missing.

    Raises:
        SourceError: If nothing is found, or a file that a sequence needs is missing or broken.
    """
    require(NAME, root, [], ["calibration"])
    inventory = Inventory(dataset=NAME, root=root)
    found = _find_sequences(inventory)
    with ThreadPoolExecutor(_THREADS) as pool:
        metas = list(pool.map(read_meta, [root / f.folder / "meta.yml" for f in found]))
    sequences = _with_calibration(root, found, metas, with_betas=mano is not None)
    places = _row_places(found, metas)
    return DatasetSource(
        dataset=NAME,
        joint_set=JointSet.manopth,
        licence=LICENCE,
        citation=CITATION,
        official_counts=OFFICIAL_COUNTS,
        root=root,
        rows=_rows(found, metas),
        splits=_splits(places),
        label_job=functools.partial(_label_job, root, sequences, mano),
        objects=_objects(root, metas),
        left_as_shipped=True,
        picture=read_picture,
        notes=_notes(found, metas, inventory)
        | cross_check(root, sequences, mano)
        | inventory.notes(),
    )


# --- sequences ------------------------------------------------------------------------------------


def _find_sequences(inventory: Inventory) -> list[_Found]:
    """Return the sequence folders in official order."""
    root = inventory.root
    found: list[_Found] = []
    subjects = inventory.folders("", SUBJECTS.__contains__, is_known=_is_beside_subjects)
    for name in subjects:
        names = inventory.folders(name, _SEQUENCE.fullmatch)
        if not names:
            raise SourceError(
                f"{NAME}: {root / name} holds no sequence folder such as 20200709_141754; unpack "
                "the subject again, or remove its folder"
            )
        found += [
            _Found(subject=SUBJECTS.index(name), position=position, folder=f"{name}/{sequence}")
            for position, sequence in enumerate(names)
        ]
    if not found:
        raise SourceError(
            f"{NAME}: {root} has none of the subjects {SUBJECTS[0]} to {SUBJECTS[-1]}; "
            "unpack at least one, or point root= at the folder that holds them"
        )
    return found


def _is_beside_subjects(name: str) -> bool:
    """Return whether an entry of the root is no subject: calibration, models, archives."""
    return _SUBJECT.fullmatch(name) is None


def _with_calibration(
    root: Path, found: Sequence[_Found], metas: Sequence[Meta], *, with_betas: bool
) -> list[Recording]:
    """Read the calibration files that the sequences refer to, each once."""
    folder = root / "calibration"
    serials = sorted({serial for meta in metas for serial in meta.serials})
    K_files = {s: folder / "intrinsics" / f"{s}_{WIDTH}x{HEIGHT}.yml" for s in serials}
    T_files = {
        name: folder / f"extrinsics_{name}" / "extrinsics.yml"
        for name in sorted({meta.extrinsics for meta in metas})
    }
    names = sorted({meta.mano for meta in metas}) if with_betas else []
    beta_files = {name: folder / f"mano_{name}" / "mano.yml" for name in names}
    files = [*K_files.values(), *T_files.values(), *beta_files.values()]
    require(NAME, root, [str(file.relative_to(root)) for file in files])
    K = {serial: read_intrinsics(file) for serial, file in K_files.items()}
    T = {name: read_extrinsics(file) for name, file in T_files.items()}
    betas = {name: read_betas(file) for name, file in beta_files.items()}
    _refuse_missing_cameras(found, metas, T, T_files)
    return [
        Recording(
            folder=f.folder,
            meta=meta,
            K=np.stack([K[serial] for serial in meta.serials]),
            T_world_from_cam=np.stack([T[meta.extrinsics][serial] for serial in meta.serials]),
            betas=betas.get(meta.mano),
        )
        for f, meta in zip(found, metas, strict=True)
    ]


def _refuse_missing_cameras(
    found: Sequence[_Found],
    metas: Sequence[Meta],
    T: Mapping[str, Mapping[str, Float64[np.ndarray, "4 4"]]],
    files: Mapping[str, Path],
) -> None:
    for f, meta in zip(found, metas, strict=True):
        missing = [serial for serial in meta.serials if serial not in T[meta.extrinsics]]
        if missing:
            raise SourceError(
                f"{NAME}: {files[meta.extrinsics]} has no extrinsics of {', '.join(missing)}, "
                f"which {f.folder} names; unpack the calibration again"
            )


def _objects(root: Path, metas: Sequence[Meta]) -> tuple[ObjectFile, ...]:
    """Return all 21 objects; only those that occur need a mesh."""
    meshes = [find_mesh(root, name) for name in YCB_NAMES]
    seen = sorted({ycb_id - 1 for meta in metas for ycb_id in meta.ycb_ids})
    missing = [f"models/{YCB_NAMES[i]}/textured_simple.obj" for i in seen if not meshes[i]]
    if missing:
        raise SourceError(
            f"{NAME}: {root} has no {', '.join(missing)}; unpack models.tar.gz beside the subjects"
        )
    return tuple(
        ObjectFile(name=name, mesh=mesh) for name, mesh in zip(YCB_NAMES, meshes, strict=True)
    )


def _notes(found: Sequence[_Found], metas: Sequence[Meta], inventory: Inventory) -> dict[str, Any]:
    """Return notes on how much of the dataset is present."""
    per_subject = Counter(SUBJECTS[f.subject] for f in found)
    notes: dict[str, Any] = {
        "sequences": len(found),
        "missing_subjects": [name for name in SUBJECTS if name not in per_subject],
    }
    others = {name: n for name, n in per_subject.items() if n != SEQUENCES_PER_SUBJECT}
    if others:
        notes["sequences_of_subjects_without_100"] = others
        notes["splits"] = (
            "s0 and s3 go by the place of a sequence among those found, so they are not the "
            f"official ones where a subject has other than {SEQUENCES_PER_SUBJECT} sequences"
        )
    if others and not (inventory.root / SYNTHETIC_FILE).is_file():
        inventory.warnings.append(
            f"{len(others)} of {len(per_subject)} subjects have other than "
            f"{SEQUENCES_PER_SUBJECT} sequences ({first_names(sorted(others))}), and the splits s0 "
            "and s3 go by the place of a sequence among those found, so they are not official"
        )
    if few := sum(len(meta.serials) < len(SERIALS) for meta in metas):
        notes["sequences_with_fewer_than_8_cameras"] = few
    return notes


# --- rows -----------------------------------------------------------------------------------------


def _rows(found: Sequence[_Found], metas: Sequence[Meta]) -> Rows:
    image: list[str] = []
    sequence: list[str] = []
    camera: list[str] = []
    subject: list[str] = []
    frames: list[np.ndarray] = []
    names = [f"color_{frame:06d}.jpg" for frame in range(max(m.num_frames for m in metas))]
    for f, meta in zip(found, metas, strict=True):
        num = meta.num_frames
        for serial in meta.serials:
            folder = f"{f.folder}/{serial}/"
            image += [folder + name for name in names[:num]]
            camera += [serial] * num
        sequence += [f.folder] * num * len(meta.serials)
        subject += [SUBJECTS[f.subject]] * num * len(meta.serials)
        frames.append(np.tile(np.arange(num, dtype=np.int32), len(meta.serials)))
    return Rows(
        image=image,
        sequence=sequence,
        camera=camera,
        subject=subject,
        frame_idx=np.concatenate(frames),
    )


def _row_places(found: Sequence[_Found], metas: Sequence[Meta]) -> _RowPlaces:
    num = [meta.num_frames * len(meta.serials) for meta in metas]
    serials = [
        np.repeat([SERIALS.index(serial) for serial in meta.serials], meta.num_frames)
        for meta in metas
    ]
    return _RowPlaces(
        subject=np.repeat([f.subject for f in found], num),
        position=np.repeat([f.position for f in found], num),
        serial=np.concatenate(serials),
    )


def _splits(places: _RowPlaces) -> dict[str, Int64[np.ndarray, " k"]]:
    """Return the official splits; all indices are zero-based."""
    fifth = places.position % 5 == 4
    few_subjects = np.isin(places.subject, (0, 1))
    grasp = places.position // 5
    masks = {
        "s0_train": ~fifth,  # seen subjects, cameras and objects
        "s0_val": fifth & few_subjects,
        "s0_test": fifth & ~few_subjects,
        "s1_train": np.isin(places.subject, (0, 1, 2, 3, 4, 5, 9)),  # unseen subjects
        "s1_val": places.subject == 6,
        "s1_test": np.isin(places.subject, (7, 8)),
        "s2_train": places.serial < 6,  # unseen cameras
        "s2_val": places.serial == 6,
        "s2_test": places.serial == 7,
        "s3_train": ~np.isin(grasp, (3, 7, 11, 15, 19)),  # unseen grasped objects
        "s3_val": np.isin(grasp, (3, 19)),
        "s3_test": np.isin(grasp, (7, 11, 15)),
    }
    return {name: np.flatnonzero(mask).astype(np.int64) for name, mask in masks.items()}


def _label_job(
    root: Path,
    sequences: Sequence[Recording],
    mano: ManoModels | None,
    official_idx: Sequence[int],
) -> LabelJob:
    """Return the label job for some rows; it carries only the sequences they belong to."""
    wanted = np.asarray(official_idx, dtype=np.int64)
    num = [s.meta.num_frames * len(s.meta.serials) for s in sequences]
    first = np.cumsum([0, *num])
    sequence = np.searchsorted(first, wanted, side="right") - 1
    frames = np.array([s.meta.num_frames for s in sequences])[sequence]
    camera, frame = np.divmod(wanted - first[sequence], frames)
    views = []
    for s, c in np.unique(np.stack((sequence, camera), axis=1), axis=0).tolist():
        rows = np.flatnonzero((sequence == s) & (camera == c))
        views.append(View(sequence=sequences[s], camera=c, frames=frame[rows], rows=rows))
    return functools.partial(read_views, root, views, mano)
