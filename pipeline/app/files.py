"""File helpers of all commands: existence checks, atomic replacement, sync."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

PARTIAL: Final = ".partial"
"""Suffix of unfinished files, ours and zarr-python's; leftover ones may be removed."""


def existing(path: str, key: str) -> Path:
    """Return the path if it exists.

    Raises:
        FileNotFoundError: If it does not; names the option.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"{key}={path!r} does not exist")
    return found


@contextlib.contextmanager
def replacing(
    path: Path, *, folder: Path | None = None, durable: bool = True
) -> Iterator[Callable[[Any], None]]:
    """Replace a file atomically: yield a write function; commit when the block ends without error.

    The bytes are synced to disk first: a kill or a full disk at any moment leaves the old file or
    the new one. After an error nothing of the new one is left, after a kill at most a temporary
    file. Several processes may replace the same file concurrently, for example a worker that
    outlived its build.

    Args:
        path: The file.
        folder: Folder of the temporary file, if not that of ``path``; on the same disk.
        durable: Sync; else the file is whole after a kill, but not after a power cut.

    Raises:
        OSError: If a write fails; the temporary file is removed.
    """
    partial = (folder or path.parent) / f"{path.name}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

        def write(data: Any) -> None:
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(descriptor, view) :]

        try:
            yield write
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    if durable:
        sync(path.parent)


def replace_file(
    path: Path, *parts: bytes | memoryview, folder: Path | None = None, durable: bool = True
) -> None:
    """Write the concatenated ``parts`` to ``path`` atomically, as ``replacing`` does."""
    with replacing(path, folder=folder, durable=durable) as write:
        for part in parts:
            write(part)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
