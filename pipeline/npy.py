"""Arrays from untrusted bytes: plain types only, memory bounded by the input size.

``numpy.load`` allocates what a header claims before it reads the data. Here NumPy parses the
header, and the bytes must be present first. Errors are plain ``ValueError``; callers name the file.
"""

import io
import re
from typing import Final, Literal

import numpy as np

_MAX_HEADER: Final = 1000
"""Maximum header length; NumPy evaluates it as a literal, and a long one may crash Python."""
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
        ValueError: If the bytes are not a whole number of elements, or are invalid text.
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
        ValueError: If it is not a ``.npy`` file or has another type.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
    except ValueError as error:
        raise ValueError("it is no .npy file") from error
    read = (
        np.lib.format.read_array_header_2_0
    )  # 3.0 differs only in field names, which are rejected
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # a literal may raise anything, even a TokenError
        raise ValueError(
            "its .npy header is not one that NumPy writes for a plain array"
        ) from error
    if min(shape, default=0) < 0:
        raise ValueError(f"it has an array of the impossible shape {shape}")
    return shape, plain_dtype(dtype.str), "F" if fortran else "C", data[stream.tell() :]
