"""Files that every command reads and writes."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

PARTIAL: Final = ".partial"
"""Ending of files under way, ours and zarr-python's; one that is left over may be removed."""


def existing(path: str, key: str) -> Path:
    """Return a path that exists.

    Raises:
        FileNotFoundError: If it does not; names the option.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"{key}={path!r} does not exist")
    return found


@contextlib.contextmanager
def replacing(path: Path, *, folder: Path | None = None) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes bytes; they appear at ``path`` when the block ends well.

    By then they are on the disk: a kill or a full disk at any moment leaves the old file or the new
    one. After an error nothing of the new one is left, after a kill at most a temporary file.
    Several processes may replace the same file at once: a worker that outlived its build, say.

    Args:
        path: The file.
        folder: Where the file is while it is under way, if not beside ``path``; on the same disk.

    Raises:
        OSError: If the disk refuses; what was written so far is given back to it.
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
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    except (Exception, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_file(path: Path, *parts: bytes | memoryview, folder: Path | None = None) -> None:
    """Put ``parts`` one after another at ``path``, as ``replacing`` does."""
    with replacing(path, folder=folder) as write:
        for part in parts:
            write(part)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
