"""Pickles written by hand, step by step; and as Python 2 wrote them."""

import io
import pickle
import sys
from types import ModuleType
from typing import Any, ClassVar
from unittest import mock

import numpy as np

NONE, MARK, EMPTY = b"N", b"(", b")"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def name_on_stack(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def data(value: bytes) -> bytes:
    return b"B" + len(value).to_bytes(4, "little") + value


def integer(value: int) -> bytes:
    return b"L" + str(value).encode() + b"L\n"


def group(*items: bytes) -> bytes:
    """A tuple."""
    return MARK + b"".join(items) + b"t"


def listed(*items: bytes) -> bytes:
    return MARK + b"".join(items) + b"l"


def mapping(*items: bytes) -> bytes:
    """A dict from keys and values in turn."""
    return MARK + b"".join(items) + b"d"


def call(function: bytes, *args: bytes) -> bytes:
    return function + group(*args) + b"R"


def store(index: int) -> bytes:
    return b"r" + index.to_bytes(4, "little")


def recall(index: int) -> bytes:
    return b"j" + index.to_bytes(4, "little")


def whole(*steps: bytes) -> bytes:
    return b"\x80\x02" + b"".join(steps) + b"."


def dims(*sizes: int) -> bytes:
    return group(*map(integer, sizes))


RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
EMPTY_ARRAY = call(RECONSTRUCT, name("numpy", "ndarray"), dims(0), data(b"b"))
NOT_BUILT = (NONE, NONE, NONE, integer(-1), integer(-1), integer(0))


def dtype_state(*items: bytes) -> bytes:
    return group(*(items or (integer(3), text("<"), *NOT_BUILT)))


def dtype(spec: str = "f8", state: bytes | None = None) -> bytes:
    made = call(name("numpy", "dtype"), text(spec), integer(0), integer(1))
    return made + (dtype_state() if state is None else state) + b"b"


def array(
    shape: bytes, payload: bytes, spec: bytes | None = None, *, fortran: bytes = b"\x89"
) -> bytes:
    state = group(integer(1), shape, dtype() if spec is None else spec, fortran, payload)
    return EMPTY_ARRAY + state + b"b"


def instance(module: str, attribute: str, **state: bytes) -> bytes:
    items = [part for key, value in state.items() for part in (text(key), value)]
    return name(module, attribute) + EMPTY + b"\x81" + mapping(*items) + b"b"


# --- as Python 2 wrote them -----------------------------------------------------------------------


class _Python2Pickler(pickle._Pickler):
    """Texts and bytes become byte strings, as ``str`` of Python 2."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_text(self, value: str | bytes) -> None:
        raw = value.encode("latin-1") if isinstance(value, str) else value
        short = len(raw) < 256
        length = len(raw).to_bytes(1 if short else 4, "little")
        pickler: Any = self  # typeshed leaves these two out
        pickler.write((b"U" if short else b"T") + length + raw)
        pickler.memoize(value)

    dispatch[str] = save_text
    dispatch[bytes] = save_text


def python2_dumps(value: Any) -> bytes:
    """Pickle as Python 2 and NumPy 1 do in protocol 2."""
    buffer = io.BytesIO()
    _Python2Pickler(buffer, 2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def _module(path: str, cls: str) -> ModuleType:
    module = ModuleType(path)
    setattr(module, cls, type(cls, (), {"__module__": path}))
    return module


def _object(module: ModuleType, cls: str, **state: Any) -> Any:
    made = getattr(module, cls)()
    made.__dict__.update(state)
    return made


def csc_state(dense: np.ndarray) -> dict[str, Any]:
    columns, rows = np.nonzero(dense.T)
    starts = np.concatenate([[0], np.cumsum(np.count_nonzero(dense, axis=0))])
    return {
        "_shape": dense.shape,
        "maxprint": 50,
        "data": dense[rows, columns],
        "indices": rows.astype(np.int32),
        "indptr": starts.astype(np.int32),
    }


def mano_pickle(arrays: dict[str, np.ndarray], *, csc: str = "scipy.sparse.csc") -> bytes:
    """Return MANO arrays as MANO v1.2 has them: chumpy shape basis, sparse regressor."""
    ch, reordering = _module("chumpy.ch", "Ch"), _module("chumpy.reordering", "Select")
    sparse = _module(csc, "csc_matrix")
    shapedirs = arrays["shapedirs"]
    wide = np.concatenate([shapedirs, np.zeros((*shapedirs.shape[:2], 5))], axis=2)
    common: dict[str, Any] = {"_dirty_vars": set(), "_itr": None, "_depends_on_deps": {}}
    values = {
        **arrays,
        "shapedirs": _object(
            reordering,
            "Select",
            a=_object(ch, "Ch", x=wide, **common),
            idxs=np.arange(wide.size).reshape(wide.shape)[:, :, :10].ravel(),
            preferred_shape=shapedirs.shape,
            **common,
        ),
        "J_regressor": _object(sparse, "csc_matrix", **csc_state(arrays["J_regressor"])),
        "J": np.zeros((16, 3)),
        "hands_coeffs": np.zeros((15, 45)),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }
    fakes = {module.__name__: module for module in (ch, reordering, sparse)}
    with mock.patch.dict(sys.modules, {"chumpy": ModuleType("chumpy"), **fakes}):
        return python2_dumps(values)
