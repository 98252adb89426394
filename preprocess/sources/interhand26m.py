"""InterHand2.6M: one or two interacting hands, 80-140 cameras, the released H+M annotation.

``root`` is the folder with ``images/`` and ``annotations/``. Those of the splits train, val and
test that are there are read, each in the order of its ``data.json``. Validity is kept as shipped;
that a hand without a valid wrist has no valid joint is a rule of the protocol. Splits:
``<split>``, ``<split>_single`` and ``<split>_interacting``, by ``hand_type``.

Camera: ``X_cam = camrot (X_world - campos)``, millimetres in the files. MANO (NeuralAnnot, root in
world coordinates, optional) turns about the rest wrist: ``transl = camrot (trans + J0 - campos)
- J0`` with the fixed left-hand model. It is a fit to the joints (about 5 mm), so there are no
official vertices to check the decoding against.

Source:
    InterHand2.6M data/InterHand2.6M/dataset.py, common/utils/transforms.py and
    tool/MANO_world_to_camera (described in the dataset notes, 1.5, 1.6 and 6).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from model.hand import LEFT, NUM_JOINTS, RIGHT, STANDARD_FROM_INTERHAND, JointSet
from model.mano import ManoArrays, ManoModels
from preprocess.annotations import read_json, require
from preprocess.records import Labels, Rows, Source, SourceError, empty_labels

SPLITS: Final = ("train", "val", "test")
OFFICIAL_COUNTS: Final = {
    "train": 1_361_062, "train_single": 687_548, "train_interacting": 673_514,
    "val": 380_125, "val_single": 234_183, "val_interacting": 145_942,
    "test": 849_160, "test_single": 488_968, "test_interacting": 360_192,
}  # fmt: skip
"""5 fps release v1.0, human and machine annotation together."""
LICENCE: Final = "InterHand2.6M: CC-BY-NC 4.0"
CITATION: Final = (
    "Moon, Yu, Wen, Shiratori, Lee: InterHand2.6M: A Dataset and Baseline for 3D Interacting Hand "
    "Pose Estimation from a Single RGB Image, ECCV 2020"
)
_NAME: Final = "interhand26m"
_SIDES: Final = {"right": RIGHT, "left": LEFT}
_HAND_TYPES: Final = (*_SIDES, "interacting")
_PERMUTATION: Final = np.array(
    [STANDARD_FROM_INTERHAND, [NUM_JOINTS + j for j in STANDARD_FROM_INTERHAND]]
)  # [2, 21]: slot 0 right, slot 1 left
_Key = tuple[str, str]
"""(capture, camera) or (capture, frame)."""


class _Image(NamedTuple):
    """One entry of ``images`` in data.json, without what we do not use."""

    id: int
    file_name: str
    capture: str
    subject: str
    seq_name: str
    camera: str
    frame: str


class _Annotation(NamedTuple):
    """One entry of ``annotations``; 42 validity bits, joint j in bit j."""

    image_id: int
    bbox_xywh: tuple[float, float, float, float]
    valid_bits: int
    hand_type: str


class _Row(NamedTuple):
    """What the labels of one image need."""

    split: str
    image: _Image
    annotation: _Annotation


@dataclass(frozen=True, kw_only=True, slots=True)
class _Camera:
    R: Float[np.ndarray, "3 3"]
    """``camrot``."""
    position_mm: Float[np.ndarray, " 3"]
    """``campos``, world."""
    K: Float[np.ndarray, "3 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ManoHand:
    """NeuralAnnot parameters of one hand, as shipped."""

    pose: Float[np.ndarray, " 48"]
    shape: Float[np.ndarray, " 10"]
    trans_m: Float[np.ndarray, " 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tables:
    """The small files of one split."""

    cameras: dict[_Key, _Camera]
    joints_mm: dict[_Key, Float[np.ndarray, "42 3"]]
    """World."""
    mano: dict[_Key, dict[int, _ManoHand]]
    """By slot."""


def open_source(root: Path, mano: ManoModels | None) -> Source:
    """Open InterHand2.6M below ``root``.

    Raises:
        SourceError: If no split is there, or files are missing, broken or disagree.
    """
    require(_NAME, root, [], ["annotations", "images"])
    present = [split for split in SPLITS if (root / "annotations" / split).is_dir()]
    if not present:
        raise SourceError(
            f"{_NAME}: {root / 'annotations'} has none of the folders {', '.join(SPLITS)}; "
            "unpack the annotations of the 5 fps release"
        )
    files = [_file(split, name) for split in present for name in ("data", "camera", "joint_3d")]
    require(_NAME, root, files, [f"images/{split}" for split in present])
    tables: dict[str, _Tables] = {}
    rows: list[_Row] = []
    splits: dict[str, list[int]] = {}
    for split in present:
        tables[split] = _read_tables(root, split, with_mano=mano is not None)
        for row in _read_rows(root / _file(split, "data"), split, tables[split]):
            kind = "interacting" if row.annotation.hand_type == "interacting" else "single"
            for name in (split, f"{split}_{kind}"):
                splits.setdefault(name, []).append(len(rows))
            rows.append(row)
    return Source(
        dataset=_NAME,
        joint_set=JointSet.interhand26m,
        licence=LICENCE,
        citation=CITATION,
        official_counts=OFFICIAL_COUNTS,
        root=root,
        rows=Rows(
            image=[f"images/{r.split}/{r.image.file_name}" for r in rows],
            sequence=[f"{r.split}/Capture{r.image.capture}/{r.image.seq_name}" for r in rows],
            camera=[r.image.camera for r in rows],
            subject=[r.image.subject for r in rows],
            frame_idx=np.array([int(r.image.frame) for r in rows], dtype=np.int32),
        ),
        splits={name: np.array(indices, dtype=np.int64) for name, indices in splits.items()},
        labels=functools.partial(_labels, rows, tables, mano),
    )


# --- labels ---------------------------------------------------------------------------------------


def _labels(
    rows: list[_Row], tables: dict[str, _Tables], mano: ManoModels | None, official_idx: int
) -> Labels:
    """Return the labels of one image."""
    split, image, annotation = rows[official_idx]
    camera = tables[split].cameras[image.capture, image.camera]
    labels = empty_labels()
    labels.K[:] = camera.K
    labels.T_world_from_cam[:] = np.eye(4)
    labels.T_world_from_cam[:3, :3] = camera.R.T
    labels.T_world_from_cam[:3, 3] = camera.position_mm / 1000.0

    valid = np.array([annotation.valid_bits >> j & 1 for j in range(2 * NUM_JOINTS)], dtype=bool)
    labels.joint_valid[:] = valid[_PERMUTATION]
    world_mm = tables[split].joints_mm[image.capture, image.frame]
    joints = (world_mm - camera.position_mm) @ camera.R.T / 1000.0
    labels.joints_3d[:] = np.where(labels.joint_valid[..., None], joints[_PERMUTATION], np.nan)

    slot = _SIDES.get(annotation.hand_type)
    if slot is not None and not labels.joint_valid[slot].any():
        x, y, width, height = annotation.bbox_xywh  # of the whole image, so of the only hand
        labels.bbox_xyxy[slot] = x, y, x + width, y + height
    if mano is not None:
        for slot, hand in tables[split].mano.get((image.capture, image.frame), {}).items():
            _fill_mano(labels, slot, hand, mano.right if slot == RIGHT else mano.left, camera)
    return labels


def _fill_mano(
    labels: Labels, slot: int, hand: _ManoHand, arrays: ManoArrays, camera: _Camera
) -> None:
    """Move one hand's parameters from the world to the camera."""
    rest = arrays.J_regressor[0] @ (arrays.v_template + arrays.shapedirs @ hand.shape)
    root = Rotation.from_matrix(camera.R) * Rotation.from_rotvec(hand.pose[:3])
    labels.theta[slot, :3] = root.as_rotvec()
    labels.theta[slot, 3:] = arrays.hands_mean + hand.pose[3:]
    labels.beta[slot] = labels.beta_raw[slot] = hand.shape
    labels.transl[slot] = camera.R @ (hand.trans_m + rest - camera.position_mm / 1000.0) - rest
    labels.root_rest[slot] = rest


# --- files ----------------------------------------------------------------------------------------


def _file(split: str, name: str) -> str:
    return f"annotations/{split}/InterHand2.6M_{split}_{name}.json"


def _read_tables(root: Path, split: str, *, with_mano: bool) -> _Tables:
    """Read cameras, joints and, if wanted and there, MANO parameters."""
    mano_path = root / _file(split, "MANO_NeuralAnnot")
    mano = {}
    if with_mano and mano_path.is_file():
        mano = _read_table(mano_path, _parse_mano)
    return _Tables(
        cameras=_read_cameras(root / _file(split, "camera")),
        joints_mm=_read_table(
            root / _file(split, "joint_3d"), lambda item: _numbers(item["world_coord"], 42, 3)
        ),
        mano=mano,
    )


def _read_cameras(path: Path) -> dict[_Key, _Camera]:
    """Return the cameras; the file is turned inside out: [capture][field][camera]."""
    turned = {
        capture: {
            name: {field: fields[field][name] for field in fields if name in fields[field]}
            for name in fields.get("campos", {})
        }
        for capture, fields in _mapping(path).items()
    }
    return _parse_table(path, turned, _parse_camera)


def _parse_camera(item: Mapping[str, Any]) -> _Camera:
    focal, centre = _numbers(item["focal"], 2), _numbers(item["princpt"], 2)
    K = np.array([[focal[0], 0.0, centre[0]], [0.0, focal[1], centre[1]], [0.0, 0.0, 1.0]])
    return _Camera(R=_numbers(item["camrot"], 3, 3), position_mm=_numbers(item["campos"], 3), K=K)


def _parse_mano(item: Mapping[str, Any]) -> dict[int, _ManoHand]:
    return {
        slot: _ManoHand(
            pose=_numbers(hand["pose"], 48),
            shape=_numbers(hand["shape"], 10),
            trans_m=_numbers(hand["trans"], 3),
        )
        for side, slot in _SIDES.items()
        if (hand := item.get(side)) is not None
    }


def _numbers(value: Any, *shape: int) -> Float[np.ndarray, "..."]:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError
    return array


def _mapping(path: Path) -> dict[str, dict[str, Any]]:
    """Return a file of the form [capture][key]."""
    table = read_json(_NAME, path)
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise SourceError(
            f"{_NAME}: {path} does not map captures to entries; unpack the annotation again"
        )
    return table


def _read_table(path: Path, parse: Any) -> dict[_Key, Any]:
    return _parse_table(path, _mapping(path), parse)


def _parse_table(path: Path, table: Mapping[str, Mapping[str, Any]], parse: Any) -> dict[_Key, Any]:
    """Return ``parse`` of every entry by (capture, key); all bad entries in one error."""
    parsed: dict[_Key, Any] = {}
    bad: list[str] = []
    for capture, entries in table.items():
        for key, item in entries.items():
            try:
                parsed[capture, key] = parse(item)
            except (KeyError, TypeError, ValueError, AttributeError):
                bad.append(f"[{capture}][{key}]")
    if bad:
        raise SourceError(
            f"{_NAME}: {len(bad)} of {len(bad) + len(parsed)} entries of {path} lack a key or hold "
            f"no finite numbers of the official shape (first: {bad[0]}); "
            "unpack the annotation again"
        )
    return parsed


def _read_rows(path: Path, split: str, tables: _Tables) -> list[_Row]:
    """Read data.json and check it against the other files; all problems in one error."""
    data = read_json(_NAME, path, object_hook=_compact)
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise SourceError(
            f"{_NAME}: {path} has no 'images' and 'annotations'; unpack the annotation again"
        )
    images, annotations = data["images"], data["annotations"]
    by_image = {a.image_id: a for a in annotations if isinstance(a, _Annotation)}
    rows: list[_Row] = []
    problems: dict[str, list[str]] = {}
    for index, image in enumerate(images):
        if not isinstance(image, _Image):
            problems.setdefault("lack an official key", []).append(f"number {index}")
        elif (annotation := by_image.get(image.id)) is None:
            problems.setdefault("have no complete annotation", []).append(image.file_name)
        elif (image.capture, image.camera) not in tables.cameras:
            problems.setdefault("have no entry in camera.json", []).append(image.file_name)
        elif (image.capture, image.frame) not in tables.joints_mm:
            problems.setdefault("have no entry in joint_3d.json", []).append(image.file_name)
        else:
            rows.append(_Row(split, image, annotation))
    if problems:
        found = " and ".join(
            f"{len(names)} {problem} (first: {names[0]})" for problem, names in problems.items()
        )
        raise SourceError(
            f"{_NAME}: of {len(images)} images ({len(annotations)} annotations) in {path} {found}; "
            "unpack all annotations of one release again"
        )
    return rows


def _compact(item: dict[str, Any]) -> Any:
    """Shrink an entry of data.json while it is parsed: 1.4 million of them stay in memory."""
    try:
        if "joint_valid" in item:
            flat = np.asarray(item["joint_valid"]).reshape(2 * NUM_JOINTS).tolist()
            x, y, width, height = map(float, item["bbox"])
            if item["hand_type"] not in _HAND_TYPES:
                return None
            return _Annotation(
                image_id=int(item["image_id"]),
                bbox_xywh=(x, y, width, height),
                valid_bits=sum(1 << j for j, valid in enumerate(flat) if valid),
                hand_type=intern(item["hand_type"]),
            )
        if "file_name" in item:
            return _Image(
                id=int(item["id"]),
                file_name=str(item["file_name"]),
                capture=intern(str(item["capture"])),
                subject=intern(str(item["subject"])),
                seq_name=intern(str(item["seq_name"])),
                camera=intern(str(item["camera"])),
                frame=intern(str(int(item["frame_idx"]))),
            )
    except (KeyError, TypeError, ValueError):
        return None  # counted and named by _read_rows, which knows the file
    return item
