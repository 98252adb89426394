"""Arrays from bytes that others wrote: plain types only, memory bounded by the bytes.

``numpy.load`` allocates what a header says before it looks at the data. Here NumPy reads the header
and the bytes must be there first. Problems are plain ``ValueError``; the callers name the file.
"""

import io
import re
from typing import Final, Literal

import numpy as np

_MAX_HEADER: Final = 1000
"""Characters; NumPy evaluates the header as a literal, and a large one may crash Python."""
_PLAIN: Final = re.compile(r"[<>|=](b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,5}|O[48]?)")


def plain_dtype(text: str) -> np.dtype:
    """Return a bool, integer, float, text or object type from its ``str``, such as ``<f8``.

    Raises:
        ValueError: For any other type.
    """
    if not _PLAIN.fullmatch(text):
        raise ValueError(f"it has an array of type {text[:20]!a}, expected numbers")
    return np.dtype(text)


def flat_array(payload: bytes, dtype: np.dtype) -> np.ndarray:
    """Return a vector of a plain type, without objects: writable, native byte order, a copy.

    Raises:
        ValueError: If the bytes are no whole number of elements, or text that is none.
    """
    stored = np.dtype(np.uint8) if dtype.kind == "b" else dtype  # a bool of 2 would be neither
    array = np.frombuffer(payload, stored).astype(dtype.newbyteorder("="))
    if dtype.kind == "U" and array.size and int(array.view(np.uint32).max()) > 0x10FFFF:
        raise ValueError("it has an array of text with characters that do not exist")
    return array


def parse_npy(data: bytes) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"], bytes]:
    """Return shape, plain type, order (C or F) and payload of the content of a ``.npy`` file.

    The payload of an object array is a pickle.

    Raises:
        ValueError: If it is no such file or has another type.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
    except ValueError as error:
        raise ValueError("it is no .npy file") from error
    read = np.lib.format.read_array_header_2_0  # 3.0 is the same but for names, which are refused
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # a literal raises what a program can, even a TokenError
        raise ValueError(
            "its .npy header is not one that NumPy writes for a plain array"
        ) from error
    if min(shape, default=0) < 0:
        raise ValueError(f"it has an array of the impossible shape {shape}")
    return shape, plain_dtype(dtype.str), "F" if fortran else "C", data[stream.tell() :]
