"""One checkpoint file: what ``torch.save`` writes, with its own sha256 as the archive's comment.

Such a file proves itself without an index beside it. ``torch.load`` and zip tools read it as ever.
"""

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from train.state.atomic import replacing

FORMAT: Final = 2
_HEX_BYTES: Final = 64
_SEAL_BYTES: Final = 2 + _HEX_BYTES
"""Length and text of the comment: the last bytes of a zip archive."""


def write_archive(path: Path, payload: dict[str, Any]) -> tuple[int, str]:
    """Write a payload atomically; return the file's size in bytes and its sha256.

    Raises:
        OSError: If a write fails; what was at ``path`` before is still there.
    """
    with replacing(path) as write:
        archive = _Archive(write)
        torch.save(payload, archive)  # type: ignore[arg-type]  # write and flush are enough
        return archive.seal()


def read_checksum(path: Path) -> str:
    """Return the sha256 of a whole file.

    Raises:
        ValueError: If the file does not end with the checksum of what is before it.
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - _SEAL_BYTES
        while left > 0 and (piece := file.read(min(left, 1 << 24))):
            digest.update(piece)
            left -= len(piece)
        seal = _seal(digest)
        if left != 0 or file.read() != seal:
            raise ValueError("its checksum does not fit: it is torn, damaged or foreign")
    digest.update(seal)
    return digest.hexdigest()


def load_archive(path: Path, run_id: str | None, *, only_header: bool = False) -> dict[str, Any]:
    """Return a payload, tensors on the CPU.

    Args:
        path: The file; ``read_checksum`` has found it whole.
        run_id: The run it must belong to; None takes any.
        only_header: Map the tensors instead of reading them; they must not be used.

    Raises:
        ValueError: If it is foreign or of another format; the text goes behind the file's name.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=only_header)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"torch cannot load it ({' '.join(str(error).split())[:200]})") from error
    found = payload.get("format") if isinstance(payload, dict) else None
    if found != FORMAT:
        raise ValueError(f"it has checkpoint format {found!r}, this code reads {FORMAT}")
    assert isinstance(payload, dict)
    if run_id is not None and payload["run_id"] != run_id:
        raise ValueError(f"it is foreign: of run {payload['run_id']}, expected run {run_id}")
    return payload


class _Archive:
    """The file object that ``torch.save`` writes to: hashes, and keeps the last piece back.

    The first error is kept as well and raised by ``seal``: torch's writer is C++ and answers an
    exception with other ones.
    """

    def __init__(self, write: Callable[[Any], None]) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self._held = b""
        self._error: BaseException | None = None
        self._bytes = 0

    def write(self, data: Any) -> int:
        """Take one piece."""
        if self._error is None:
            try:
                self._put(self._held)
            except BaseException as error:  # raised again by seal
                self._error = error
            self._held = bytes(data)  # torch's memory is gone after the call
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def seal(self) -> tuple[int, str]:
        """Write the archive's end with the checksum as its comment; return size and sha256."""
        if self._error is not None:
            raise self._error
        assert self._held.endswith(b"\0\0"), "the end of a zip archive without a comment"
        self._put(self._held[:-2])
        self._put(_seal(self._digest))
        return self._bytes, self._digest.hexdigest()

    def _put(self, data: bytes) -> None:
        self._write(data)
        self._digest.update(data)
        self._bytes += len(data)


def _seal(digest: "hashlib._Hash") -> bytes:
    return struct.pack("<H", _HEX_BYTES) + digest.hexdigest().encode()
