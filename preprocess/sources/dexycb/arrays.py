"""DexYCB's ``.npz`` and depth files: plain arrays of known shape, read within bounds.

All problems of a file come in one error. The archives are read as others' files (``pipeline.zips``
and ``npy``): no pickles, and no memory that the bytes on disk do not justify.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8, UInt16

from pipeline.npy import flat_array, parse_npy
from pipeline.zips import open_zip, read_member
from preprocess.records import SourceError
from preprocess.sources.dexycb.files import HEIGHT, NAME, WIDTH, Meta, refuse

_MAX_NPY_HEADER: Final = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class HandLabel:
    """One ``labels_*.npz`` without its segmentation."""

    pose_y: Float[np.ndarray, "o 3 4"]
    pose_m: Float[np.ndarray, " 51"]
    joint_3d: Float[np.ndarray, "21 3"]


def read_label(path: Path, num_objects: int) -> HandLabel:
    """Read the poses of a ``labels_*.npz`` and check the size of its segmentation.

    Raises:
        SourceError: If the file cannot be read, is damaged, or holds arrays of other shapes.
    """
    arrays = _read_npz(
        path,
        {"pose_y": (num_objects, 3, 4), "pose_m": (1, 51), "joint_3d": (1, 21, 3)},
        only_headers={"seg": (HEIGHT, WIDTH)},  # most of the file, and not needed here
    )
    return HandLabel(
        pose_y=arrays["pose_y"], pose_m=arrays["pose_m"][0], joint_3d=arrays["joint_3d"][0]
    )


def read_segmentation(path: Path) -> UInt8[np.ndarray, "480 640"]:
    """Read ``seg`` of a ``labels_*.npz``: 0 background, 1 to 21 object, 255 hand.

    Raises:
        SourceError: If the file cannot be read, is damaged, or holds another array.
    """
    return _read_npz(path, {"seg": (HEIGHT, WIDTH)}, kinds=("u1",))["seg"]


def read_pose(
    path: Path, meta: Meta
) -> tuple[Float[np.ndarray, "f 51"], Float[np.ndarray, "f o 7"]]:
    """Read ``pose_m`` and ``pose_y`` of a ``pose.npz``: master camera, quaternions (x, y, z, w).

    Raises:
        SourceError: If the file cannot be read, is damaged, or holds arrays of other shapes.
    """
    num = meta.num_frames
    shapes = {"pose_m": (num, 1, 51), "pose_y": (num, len(meta.ycb_ids), 7)}
    arrays = _read_npz(path, shapes)
    return arrays["pose_m"][:, 0], arrays["pose_y"]


def read_depth(path: Path) -> UInt16[np.ndarray, "480 640"]:
    """Read an ``aligned_depth_to_color_*.png``, millimetres, 0 = unknown.

    Raises:
        SourceError: If the file cannot be read or is another picture.
    """
    import cv2  # heavy, and only builds that keep depth need it

    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{NAME}: cannot read {path} ({error.strerror})") from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    expected = f"a uint16 picture of {WIDTH} x {HEIGHT} pixels"
    if image is None:
        refuse(path, [f"it is no picture, expected {expected}"])
    elif image.dtype != np.uint16 or image.shape != (HEIGHT, WIDTH):
        refuse(path, [f"it is {image.dtype} of shape {image.shape}, expected {expected}"])
    return np.asarray(image)


def _read_npz(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    only_headers: Mapping[str, tuple[int, ...]] | None = None,
    kinds: tuple[str, ...] = ("f4", "f8"),
) -> dict[str, np.ndarray]:
    """Return arrays of an ``.npz``; of those in ``only_headers`` the shape is looked at."""
    only_headers = only_headers or {}
    arrays: dict[str, np.ndarray] = {}
    problems: list[str] = []
    try:
        with open_zip(path, name=str(path)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            for key, shape in {**only_headers, **shapes}.items():
                try:
                    member = members[f"{key}.npy"]
                    if key in only_headers:
                        found, *_ = parse_npy(_read_start(archive, member))
                        _check_shape(found, shape)
                    else:
                        arrays[key] = _read_array(archive, member, shape, kinds)
                except KeyError:
                    problems.append(f"it has no {key}")
                except ValueError as error:
                    problems.append(f"{key}: {error}")
    except OSError as error:
        raise SourceError(f"{NAME}: cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise SourceError(f"{NAME}: {error}; unpack the official file again") from error
    refuse(path, problems)
    return arrays


def _read_array(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    shape: tuple[int, ...],
    kinds: tuple[str, ...],
) -> np.ndarray:
    # More than the expected bytes, so that an array of another shape is named with that shape.
    most = 2 * 8 * math.prod(shape) + _MAX_NPY_HEADER
    data = read_member(archive, member, name="it", max_bytes=most)
    found, dtype, order, payload = parse_npy(data)
    _check_shape(found, shape)
    if dtype.str[1:] not in kinds:
        raise ValueError(f"it holds {dtype}, expected {' or '.join(kinds)}")
    return flat_array(payload, dtype).reshape(found, order=order)


def _check_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ValueError(f"it has shape {found}, expected {expected}")


def _read_start(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return the header of an array whose content is not needed."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"it is packed by method {member.compress_type}, expected deflate")
    try:
        with archive.open(member) as file:
            return file.read(_MAX_NPY_HEADER)
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from error
