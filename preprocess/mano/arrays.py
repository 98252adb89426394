"""Load the nine arrays of a MANO model from its pickle or a ``.npz``, dense and validated.

The pickles of MANO v1.2 were written by Python 2 and hold a ``chumpy`` expression (``shapedirs``)
and a SciPy matrix (``J_regressor``). Neither library reads them here: the few arrays in their
states are put together below. Further keys (``J``, ``hands_coeffs``, ``bs_type``) are left out.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from model.hand import MANO_PARENTS, NUM_JOINTS, NUM_VERTICES
from model.mano.files import MANO_SHAPES
from pipeline.pickles import Instance, kind, load_npy, load_pickle
from pipeline.zips import open_zip, read_member

Arrays = dict[str, np.ndarray]

SUM_TOLERANCE: Final = 1e-2
"""Rows of the weights and of the regressor sum to one; a cut or shuffled array is far off."""
_CSC: Final = frozenset({("scipy.sparse.csc", "csc_matrix"), ("scipy.sparse._csc", "csc_matrix")})
MANO_CLASSES: Final = _CSC | {("chumpy.ch", "Ch"), ("chumpy.reordering", "Select")}
_INTEGERS: Final = ("f", "kintree_table")
_MAX_DENSE: Final = 2**22


def mano_from_pickle(data: bytes, *, name: str) -> Arrays:
    """Return the arrays of a MANO pickle under their names in ``MANO_SHAPES``, types as stored.

    Args:
        data: Content of the file.
        name: Name of the file in error messages.

    Raises:
        PickleError: If the pickle is broken or holds more than plain data.
        ValueError: If it is not a MANO model; all problems in one sentence.
    """
    values = load_pickle(data, name=name, allow=MANO_CLASSES)
    if type(values) is not dict:
        raise ValueError(f"{name} is not a MANO model: it is {kind(values)}, expected a dict")
    return _checked(values, name)


def mano_from_npz(data: bytes, *, name: str) -> Arrays:
    """Return the arrays of a MANO ``.npz`` under their names in ``MANO_SHAPES``.

    Args:
        data: Content of the file.
        name: Name of the file in error messages.

    Raises:
        PickleError: If an array holds more than plain data.
        ValueError: If it is not a MANO model; all problems in one sentence.
    """
    values = {}
    with open_zip(data, name=name) as archive:
        for member in archive.infolist():
            key = member.filename.removesuffix(".npy")
            if key in MANO_SHAPES:
                shown = f"{name}: {key}"
                most = 8 * math.prod(MANO_SHAPES[key]) + 10_000
                content = read_member(archive, member, name=shown, max_bytes=most)
                values[key] = load_npy(content, name=shown)
    return _checked(values, name)


def check_interhand_regressor(data: bytes, *, name: str) -> None:
    """Check InterHand2.6M's joint regressor, a ``.npy`` of floats [21, 778].

    Raises:
        PickleError: If it is not a plain ``.npy`` file.
        ValueError: If the array is another one.
    """
    array = load_npy(data, name=name)
    shape = (NUM_JOINTS, NUM_VERTICES)
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(
            f"{name}: expected finite floats of shape {shape}, got {array.dtype} {array.shape}"
        )


def _checked(values: Mapping[str, Any], name: str) -> Arrays:
    """Return dense, contiguous arrays, or raise one error with every problem."""
    arrays: Arrays = {}
    problems = []
    for key, shape in MANO_SHAPES.items():
        try:
            array = _dense(values[key], levels=3)
        except KeyError:
            problems.append(f"no {key}")
            continue
        except ValueError as error:
            problems.append(f"{key} {error}")
            continue
        expected = "iu" if key in _INTEGERS else "f"
        if array.shape != shape or array.dtype.kind not in expected:
            words = "integers" if key in _INTEGERS else "floats"
            problems.append(f"{key} is {array.dtype} {array.shape}, expected {words} {shape}")
        elif not np.isfinite(array).all():
            problems.append(f"{key} is not finite")
        else:
            arrays[key] = np.ascontiguousarray(array)
            problems += _content_problems(key, arrays[key])
    if problems:
        raise ValueError(f"{name} is not a MANO model: {'; '.join(problems)}")
    return arrays


def _content_problems(key: str, array: np.ndarray) -> list[str]:
    """Check one array of the right shape and kind."""
    if key in ("weights", "J_regressor"):
        off = float(np.abs(array.sum(1) - 1).max())
        if off > SUM_TOLERANCE:
            return [f"rows of {key} sum to 1 only within {off:.3g}, expected {SUM_TOLERANCE:g}"]
    if key == "f" and not 0 <= int(array.min()) <= int(array.max()) < NUM_VERTICES:
        return [f"f numbers vertices {array.min()} to {array.max()}, expected 0 to 777"]
    if key == "kintree_table":
        parents, joints = array.tolist()
        root_is_free = parents[0] in (-1, 2**32 - 1)
        if not root_is_free or joints != [*range(16)] or parents[1:] != [*MANO_PARENTS[1:]]:
            return ["kintree_table is not MANO's joint tree"]
    return []


# --- what MANO's pickles hold instead of arrays ---------------------------------------------------


def _dense(value: Any, *, levels: int) -> np.ndarray:
    """Return the array that a value of the pickle stands for.

    Args:
        value: An array, or a chumpy or SciPy object.
        levels: How many chumpy objects may be in each other.

    Raises:
        ValueError: If it is none of them; the words follow the name of the key.
    """
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, Instance) or not levels:
        raise ValueError(f"is {kind(value)}, expected an array")
    if (value.module, value.name) in _CSC:
        return _from_csc(value.state)
    if value.name == "Ch":
        return _dense(value.state.get("x"), levels=levels - 1)
    return _selected(value.state, levels=levels - 1)


def _selected(state: dict[str, Any], *, levels: int) -> np.ndarray:
    """``chumpy.reordering.Select``: ``a.ravel()[idxs].reshape(preferred_shape)``."""
    source = _dense(state.get("a"), levels=levels).ravel()
    idxs = _vector(state.get("idxs"), "iu", "idxs")
    shape = _shape(state.get("preferred_shape", idxs.shape))
    if idxs.size and not 0 <= int(idxs.min()) <= int(idxs.max()) < source.size:
        raise ValueError("selects elements that are not there")
    if math.prod(shape) != idxs.size:
        raise ValueError(f"selects {idxs.size} elements for shape {shape}")
    return source[idxs.astype(np.int64)].reshape(shape)


def _from_csc(state: dict[str, Any]) -> np.ndarray:
    """``scipy.sparse.csc_matrix.toarray()``; repeated entries are summed."""
    shape = _shape(state.get("_shape", state.get("shape")))
    data = _vector(state.get("data"), "f", "data")
    rows = _vector(state.get("indices"), "iu", "indices").astype(np.int64)
    starts = _vector(state.get("indptr"), "iu", "indptr").astype(np.int64)
    if len(shape) != 2 or math.prod(shape) > _MAX_DENSE or len(starts) != shape[1] + 1:
        raise ValueError(f"is a sparse matrix of shape {shape} with {len(starts)} column starts")
    counts = np.diff(starts)
    in_range = not len(rows) or (rows.min() >= 0 and rows.max() < shape[0])
    if starts[0] != 0 or (counts < 0).any() or not starts[-1] == len(data) == len(rows):
        raise ValueError("is a sparse matrix whose columns do not match its data")
    if not in_range:
        raise ValueError("is a sparse matrix with elements outside its shape")
    dense = np.zeros(shape, data.dtype)
    np.add.at(dense, (rows, np.repeat(np.arange(shape[1]), counts)), data)
    return dense


def _shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if type(value) not in (list, tuple):
        raise ValueError(f"has {kind(value)} as its shape")
    if not all(isinstance(n, (int, np.integer)) and 0 <= n < 2**31 for n in value):
        raise ValueError("has an impossible shape")
    return tuple(map(int, value))


def _vector(value: Any, kinds: str, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in kinds:
        raise ValueError(f"has no vector of numbers as its {name}")
    return value
