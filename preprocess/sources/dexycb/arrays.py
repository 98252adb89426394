"""Read DexYCB's ``.npz`` and depth files: plain arrays of known shape, no pickles.

All problems of a file are reported in one error.
"""

import math
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8, UInt16

from preprocess.records import SourceError
from preprocess.sources.annotations import check_regular
from preprocess.sources.dexycb.files import HEIGHT, NAME, WIDTH, Meta, refuse


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
        {
            "seg": (HEIGHT, WIDTH),
            "pose_y": (num_objects, 3, 4),
            "pose_m": (1, 51),
            "joint_3d": (1, 21, 3),
        },
        unread={"seg"},  # most of the file, and not needed here
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
        SourceError: If the file cannot be read or has another type or size.
    """
    from preprocess.images.label_picture import read_label_picture  # imports cv2, which is slow

    image = read_label_picture(NAME, path)
    if image.dtype != np.uint16 or image.shape != (HEIGHT, WIDTH):
        expected = f"a uint16 picture of {WIDTH} x {HEIGHT} pixels"
        refuse(path, [f"it is {image.dtype} of shape {image.shape}, expected {expected}"])
    return image


def _read_npz(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    kinds: tuple[str, ...] = ("f4", "f8"),
    unread: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz``; for those in ``unread`` only the shape is checked."""
    arrays: dict[str, np.ndarray] = {}
    problems: list[str] = []
    check_regular(NAME, path)
    try:
        with zipfile.ZipFile(path) as archive:
            for key, shape in shapes.items():
                try:
                    with archive.open(f"{key}.npy") as file:
                        np.lib.format.read_magic(file)
                        found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                        if found != shape:
                            problems.append(f"{key}: it has shape {found}, expected {shape}")
                        elif key in unread:
                            continue
                        elif dtype.str[1:] not in kinds:
                            expected = " or ".join(kinds)
                            problems.append(f"{key}: it holds {dtype}, expected {expected}")
                        else:
                            # Read one byte too many: the checksum is verified at the end.
                            data = file.read(math.prod(shape) * dtype.itemsize + 1)
                            order: Literal["F", "C"] = "F" if fortran else "C"
                            arrays[key] = np.frombuffer(data, dtype).reshape(shape, order=order)
                except KeyError:
                    problems.append(f"it has no {key}")
                except OSError:
                    raise
                except Exception as error:  # NumPy's parser raises whatever a broken header hits
                    problems.append(f"{key}: it is damaged: {' '.join(str(error).split())[:200]}")
    except OSError as error:
        raise SourceError(f"{NAME}: cannot read {path} ({error.strerror})") from error
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OverflowError) as error:
        raise SourceError(
            f"{NAME}: {path} is not a zip file, or is cut off; unpack the official file again"
        ) from error
    refuse(path, problems)
    return arrays
