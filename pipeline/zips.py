"""Untrusted zip files: members are read into memory with limits, never extracted."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from pipeline.app.files import open_regular

MAX_MEMBERS: Final = 20_000
_MAX_DIRECTORY: Final = 8 * 2**20
_END: Final = struct.Struct("<4s4H2LH")
_BROKEN: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""Exceptions that ``zipfile`` raises for damaged files."""


@contextmanager
def open_zip(source: Path | bytes, *, name: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip file after checking the size of its member list.

    Args:
        source: File or its content.
        name: Name in error messages.

    Raises:
        ValueError: If it is not a zip file, or lists more members than any known download.
        OSError: If it cannot be read.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as stream:
        _check_directory(stream, name)
        try:
            archive = zipfile.ZipFile(stream)
        except _BROKEN as error:
            raise ValueError(f"{name} is a broken zip file: {error}") from error
        with archive:
            yield archive


def read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, name: str, max_bytes: int
) -> bytes:
    """Return the content of one member.

    Args:
        archive: From ``open_zip``.
        member: One of its ``infolist``.
        name: Name of the member in error messages.
        max_bytes: Maximum size, of both the declared and the actual content.

    Raises:
        ValueError: If it is encrypted, uses an unusual compression, is too large or damaged.
    """
    if member.flag_bits & 1:
        raise ValueError(f"{name} is encrypted; unpack it first")
    # Other compression methods allocate what their header claims.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed by method {member.compress_type}, expected deflate")
    if member.file_size > max_bytes:
        raise ValueError(f"{name} has {member.file_size} bytes, expected at most {max_bytes}")
    try:
        with archive.open(member) as file:
            data = file.read(max_bytes + 1)
    except _BROKEN as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if len(data) != member.file_size:
        raise ValueError(f"{name} has other than the {member.file_size} bytes it declares")
    return data


def _check_directory(stream: BinaryIO, name: str) -> None:
    """Check the end record before ``zipfile`` reads the whole directory into memory."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - 2**16 - _END.size - 20))
    tail = stream.read()
    stream.seek(0)
    start = tail.rfind(b"PK\x05\x06")
    if start < 0 or len(tail) - start < _END.size:
        raise ValueError(f"{name} is no zip file, or is cut off")
    _, _, _, _, members, length, _, _ = _END.unpack_from(tail, start)
    zip64 = tail[max(0, start - 20) : start].startswith(b"PK\x06\x07")
    if zip64 or members > MAX_MEMBERS or length > _MAX_DIRECTORY:
        raise ValueError(f"{name} lists more than {MAX_MEMBERS} members; unpack it first")
