"""Arrays from bytes that others wrote: plain types only, memory bounded by the bytes.

NumPy's own readers take the shape and the type from the file and allocate before they look at the
data, and a type may hold Python objects. Here the type comes from a short list and the bytes must
be there first. Problems are plain ``ValueError``; the callers add the name of the file.
"""

import math
import re
from typing import Final

import numpy as np

MAX_DIMS: Final = 32
_MAX_SIZE: Final = 2**40
_PLAIN: Final = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,5}")
_OBJECT: Final = re.compile(r"O[48]?")
_NPY_MAGIC: Final = b"\x93NUMPY"
_NPY_HEADER: Final = re.compile(
    rb"\{'descr': '([<>|]?)([A-Za-z][0-9]{0,6})', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9L, ]{0,500})\),? ?\}\s*"
)


def plain_dtype(spec: str, order: str, *, objects: bool = False) -> np.dtype:
    """Return a bool, integer, float or text type; ``object`` only with ``objects``.

    Args:
        spec: Kind and size, such as ``f8``.
        order: ``<``, ``>`` or ``|``.
        objects: Allow ``O``.

    Raises:
        ValueError: For any other type.
    """
    if objects and _OBJECT.fullmatch(spec):
        return np.dtype(object)
    if not _PLAIN.fullmatch(spec) or order not in ("<", ">", "|"):
        raise ValueError(f"it has an array of type {order + spec[:20]!a}, expected numbers")
    return np.dtype(spec) if order == "|" else np.dtype(order + spec)


def check_shape(shape: object) -> tuple[int, ...]:
    """Return ``shape`` if it can be one.

    Raises:
        ValueError: If it is no tuple of at most 32 non-negative integers.
    """
    if type(shape) is not tuple or not all(type(dim) is int and dim >= 0 for dim in shape):
        raise ValueError("it has an array whose shape is no tuple of sizes")
    if len(shape) > MAX_DIMS or math.prod(max(dim, 1) for dim in shape) > _MAX_SIZE:
        raise ValueError(f"it has an array with an impossible shape of {len(shape)} axes")
    return shape


def plain_array(
    shape: tuple[int, ...], dtype: np.dtype, payload: bytes | bytearray, *, fortran: bool
) -> np.ndarray:
    """Return a writable array in native byte order, copied from ``payload``.

    Args:
        shape: From ``check_shape``.
        dtype: From ``plain_dtype``, not ``object``.
        payload: The elements; exactly as many bytes as the shape needs.
        fortran: The first axis varies fastest.

    Raises:
        ValueError: If there are more or fewer bytes, or text that is none.
    """
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(payload):
        raise ValueError(
            f"it has an array of shape {shape} and type {dtype.str} that needs {needed} bytes "
            f"and has {len(payload)}"
        )
    if dtype.kind == "b":  # any other byte than 0 and 1 would be a bool that is neither
        array = np.asarray(np.frombuffer(payload, np.uint8) != 0)
    else:
        array = np.frombuffer(payload, dtype).astype(dtype.newbyteorder("="))
    if dtype.kind == "U" and len(payload) and int(array.view(np.uint32).max()) > 0x10FFFF:
        raise ValueError("it has an array of text with characters that do not exist")
    return array.reshape(shape, order="F" if fortran else "C")


def parse_npy(
    data: bytes, *, objects: bool = False
) -> tuple[tuple[int, ...], np.dtype, bool, bytes]:
    """Return shape, type, whether Fortran order, and the payload of a ``.npy`` file.

    The header is matched, not evaluated. With ``objects`` the payload of an object array is a
    pickle.

    Raises:
        ValueError: If it is no such file or has another type.
    """
    if not data.startswith(_NPY_MAGIC) or len(data) < 12:
        raise ValueError("it is no .npy file")
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    header = _NPY_HEADER.fullmatch(data[start:end]) if end <= min(len(data), 10_000) else None
    if data[6] not in (1, 2, 3) or header is None:
        raise ValueError("its .npy header is not one that NumPy writes for a plain array")
    order, spec, fortran, dims = (part.decode() for part in header.groups())
    shape = check_shape(tuple(int(dim) for dim in re.findall(r"[0-9]+", dims)))
    dtype = plain_dtype(spec, order or "|", objects=objects)
    return shape, dtype, fortran == "True", data[end:]
