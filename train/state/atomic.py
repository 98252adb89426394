"""Writing a file whole: a kill or a full disk at any moment leaves the old file or the new one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

TEMPORARY: Final = ".tmp"
"""What a file that is not finished ends with; one that is left over may be removed."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes bytes; they appear at ``path`` when the block ends well.

    By then they are on the disk. After an error nothing of them is left, after a kill at most a
    temporary file beside ``path``.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

        def write(data: Any) -> None:
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(descriptor, view) :]

        try:
            yield write
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except Exception:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, whole and on the disk, or leave what was there."""
    with replacing(path) as write:
        write(data)


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
