"""MANO files: finding and loading them, and a NumPy version of the layer. Imports no torch.

MANO is licensed and never shipped. ``find_mano`` looks for a folder with ``MANO_RIGHT.npz`` and
``MANO_LEFT.npz``, and optionally InterHand2.6M's joint regressor. The left model is always used
with its shape basis fixed (smplx issue 48).

Shape legend: n = rows. Metres and radians; ``joint0 = J0(beta) + transl``.
"""

import hashlib
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tokenize import TokenError
from typing import IO, Final

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.spatial.transform import Rotation

from model.hand import MANO_PARENTS, NUM_JOINTS, NUM_MANO_JOINTS, NUM_VERTICES

MANO_ENV: Final = "HANDLOOM_MANO"
MANO_FILES: Final = ("MANO_RIGHT.npz", "MANO_LEFT.npz")
INTERHAND_REGRESSOR_FILE: Final = "J_regressor_mano_ih26m.npy"
_INTEGERS: Final = ("f", "kintree_table")
_MOST_BYTES: Final = 64 << 20
_BROKEN: Final = (
    ValueError, OSError, EOFError, KeyError, TypeError, SyntaxError, RuntimeError,
    NotImplementedError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, TokenError,
)  # fmt: skip
"""What damaged archives and headers raise."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ManoArrays:
    """MANO model of one side, as in its file; the left one with its shape basis fixed."""

    v_template: Float64[np.ndarray, "778 3"]
    shapedirs: Float64[np.ndarray, "778 3 10"]
    posedirs: Float64[np.ndarray, "778 3 135"]
    J_regressor: Float64[np.ndarray, "16 778"]
    weights: Float64[np.ndarray, "778 16"]
    hands_mean: Float64[np.ndarray, " 45"]
    hands_components: Float64[np.ndarray, "45 45"]
    f: Int64[np.ndarray, "1538 3"]
    kintree_table: Int64[np.ndarray, "2 16"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ManoModels:
    """MANO models of both sides, the shipped left model, the optional regressor and a hash."""

    right: ManoArrays
    left: ManoArrays
    left_as_shipped: ManoArrays
    """``left`` with the shape basis that MANO ships, to decode labels fitted with it (DexYCB,
    ARCTIC). Made from ``left`` where the file itself is already fixed."""
    left_was_unfixed: bool
    """Whether the left file had the shape basis of smplx issue 48 and was fixed on loading."""
    interhand_regressor: Float[np.ndarray, "21 778"] | None
    """InterHand2.6M's regressor in its own joint order; None where the file is absent."""
    sha256: str
    """Hash over the arrays of both sides, after the fix."""


def find_mano(path: str | None) -> Path | None:
    """Return the MANO folder: ``path``, else ``HANDLOOM_MANO``, else None.

    Raises:
        FileNotFoundError: If a folder is named but lacks one of the two files.
    """
    named = path or os.environ.get(MANO_ENV)
    if not named:
        return None
    folder = Path(named).expanduser()
    missing = [name for name in MANO_FILES if not (folder / name).is_file()]
    if missing:
        source = "mano" if path else MANO_ENV
        raise FileNotFoundError(
            f"{source}={str(folder)!r} lacks {' and '.join(missing)}; expected the licensed models "
            "as plain .npz: python -m preprocess import-mano path=mano_v1_2.zip out=FOLDER"
        )
    return folder


def load_mano(folder: Path) -> ManoModels:
    """Read both sides, fix the left shape basis if needed, hash the arrays.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file lacks an array, or one has another shape or joint tree.
    """
    right, left = (_load_arrays(folder / name) for name in MANO_FILES)
    was_unfixed = left_is_unfixed(left.shapedirs, right.shapedirs)
    # The hash identifies the model after the fix, so all of ``ManoModels`` must follow from that.
    other = replace(left, shapedirs=with_other_x(left.shapedirs))
    left, as_shipped = (other, left) if was_unfixed else (left, other)

    regressor = None
    regressor_path = folder / INTERHAND_REGRESSOR_FILE
    if regressor_path.is_file():
        try:
            with regressor_path.open("rb") as opened:
                regressor = _plain_array(opened).astype(np.float32)
        except _BROKEN as error:
            raise ValueError(
                f"{regressor_path} is damaged ({error}); write it again: python -m preprocess "
                "import-mano"
            ) from error
        if regressor.shape != (NUM_JOINTS, NUM_VERTICES):
            raise ValueError(
                f"{regressor_path}: expected shape {(NUM_JOINTS, NUM_VERTICES)}, "
                f"got {regressor.shape}"
            )
    digest = hashlib.sha256()
    for arrays in (right, left):
        for field in fields(arrays):
            digest.update(field.name.encode())
            digest.update(getattr(arrays, field.name).tobytes())
    return ManoModels(
        right=right,
        left=left,
        left_as_shipped=as_shipped,
        left_was_unfixed=was_unfixed,
        interhand_regressor=regressor,
        sha256=digest.hexdigest(),
    )


def left_is_unfixed(left: np.ndarray, right: np.ndarray) -> bool:
    """Return whether the left shape basis [778, 3, 10] is the one that MANO ships.

    Source:
        https://github.com/vchoutas/smplx/issues/48: the x axis of the left shape basis was
        published with the sign of the right one.
    """
    return bool(np.abs(left[:, 0] - right[:, 0]).sum() < 1)


def with_other_x(shapedirs: np.ndarray) -> np.ndarray:
    """Return a shape basis [778, 3, 10] with its x axis negated."""
    turned = shapedirs.copy()
    turned[:, 0] *= -1
    return turned


MANO_SHAPES: Final = {
    "v_template": (778, 3),
    "shapedirs": (778, 3, 10),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "hands_mean": (45,),
    "hands_components": (45, 45),
    "f": (1538, 3),
    "kintree_table": (2, 16),
}


def _load_arrays(path: Path) -> ManoArrays:
    """Read one npz file; one error reports all of its problems."""
    arrays: dict[str, np.ndarray] = {}
    problems = []
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; python -m preprocess import-mano writes it")
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            for name, shape in MANO_SHAPES.items():
                if f"{name}.npy" not in names:
                    problems.append(f"no {name}")
                    continue
                with archive.open(f"{name}.npy") as member:
                    array = _plain_array(member)
                arrays[name] = array.astype(np.int64 if name in _INTEGERS else np.float64)
                if array.shape != shape:
                    problems.append(f"{name} has shape {array.shape}, expected {shape}")
                elif not np.isfinite(arrays[name]).all():
                    problems.append(f"{name} is not finite")
    except _BROKEN as error:
        raise ValueError(
            f"{path} is empty or damaged; write it again: python -m preprocess import-mano"
        ) from error
    if not problems and tuple(arrays["kintree_table"][0, 1:]) != MANO_PARENTS[1:]:
        problems.append("kintree_table is not MANO's joint tree")
    if problems:
        raise ValueError(f"{path} is no MANO model: {'; '.join(problems)}")
    return ManoArrays(**arrays)


def _plain_array(stream: IO[bytes]) -> np.ndarray:
    """Return the array of numbers in a ``.npy`` stream; nothing is allocated for a false header.

    Raises:
        ValueError: If it holds anything else, or more than any array of MANO.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream, max_header_size=1000)
    num_bytes = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "iuf" or not 0 <= num_bytes <= _MOST_BYTES or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype} {shape}")
    data = stream.read(num_bytes)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def mano_forward(
    arrays: ManoArrays,
    theta: Float64[np.ndarray, "n 48"],
    beta: Float64[np.ndarray, "n 10"],
    transl: Float64[np.ndarray, "n 3"],
) -> tuple[Float64[np.ndarray, "n 778 3"], Float64[np.ndarray, "n 16 3"]]:
    """Return vertices and the 16 joints in numpy float64; for offline use.

    Uses about 150 KB of temporary memory per row.

    Args:
        arrays: Model of the side of all rows.
        theta: Absolute axis-angle (mean added), root first.
        beta: Shape.
        transl: Translation, metres.

    Source:
        Romero et al. 2017, Embodied Hands, section 3; Loper et al. 2015, SMPL, equations 2-10.
    """
    num = len(theta)
    R = Rotation.from_rotvec(theta.reshape(-1, 3)).as_matrix().reshape(num, NUM_MANO_JOINTS, 3, 3)
    shaped = arrays.v_template + (beta @ arrays.shapedirs.reshape(-1, 10).T).reshape(num, -1, 3)
    rest = arrays.J_regressor @ shaped
    feature = (R[:, 1:] - np.eye(3)).reshape(num, -1)
    posed = shaped + (feature @ arrays.posedirs.reshape(-1, 135).T).reshape(num, -1, 3)

    turn = R.copy()
    joints = rest.copy()
    for j, parent in enumerate(MANO_PARENTS[1:], start=1):
        turn[:, j] = turn[:, parent] @ R[:, j]
        bone = rest[:, j] - rest[:, parent]
        joints[:, j] = joints[:, parent] + np.einsum("nik,nk->ni", turn[:, parent], bone)
    shift = joints - np.einsum("njik,njk->nji", turn, rest)
    blended = (arrays.weights @ turn.reshape(num, -1, 9)).reshape(num, -1, 3, 3)
    vertices = np.einsum("nvik,nvk->nvi", blended, posed) + arrays.weights @ shift
    return vertices + transl[:, None], joints + transl[:, None]
