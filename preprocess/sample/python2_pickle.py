"""Pickle plain values as Python 2 and NumPy 1 do, protocol 2: the format of HO-3D's meta files.

Python 3 writes text as unicode and names NumPy's modules differently; readers of the real files
must support the old opcodes, so samples use them. ``pickle.load(file, encoding="latin1")`` opens
them.
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np


def python2_pickle(values: Mapping[str, Any]) -> bytes:
    """Pickle a dict of None, integers, text, lists of integers and arrays.

    Raises:
        TypeError: For a value of another type.
    """
    items = b"".join(_value(key) + _value(value) for key, value in values.items())
    return b"\x80\x02}(" + items + b"u."


def _value(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, int) and not isinstance(value, bool):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return _bytes(value.encode("ascii"))
    if isinstance(value, list):
        return b"](" + b"".join(map(_value, value)) + b"e"
    if isinstance(value, np.ndarray) and value.dtype.kind in "fi":
        return _array(np.ascontiguousarray(value))
    raise TypeError(f"a meta file holds no {type(value).__name__}")


def _bytes(data: bytes) -> bytes:
    if len(data) < 256:
        return b"U" + struct.pack("<B", len(data)) + data
    return b"T" + struct.pack("<i", len(data)) + data


def _array(array: np.ndarray) -> bytes:
    """``_reconstruct(ndarray, (0,), 'b')``, then the state (1, shape, dtype, False, data)."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _bytes(b"b")
    code = _bytes(array.dtype.str[1:].encode())
    dtype = b"cnumpy\ndtype\n" + code + b"K\x00K\x01\x87R"
    order = b"(K\x03" + _bytes(b"<") + b"NNN" + _value(-1) * 2 + b"K\x00tb"
    shape = b"(" + b"".join(map(_value, array.shape)) + b"t"
    data = _bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return empty + b"\x87R(K\x01" + shape + dtype + order + b"\x89" + data + b"tb"
