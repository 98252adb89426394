"""File helpers of all commands: existence checks, atomic replacement, sync."""

import contextlib
import errno
import fcntl
import functools
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

MARKER: Final = ".handloom"
"""Empty file in a folder whose content may be removed: a command of ours made it."""
PARTIAL: Final = ".partial"
"""Suffix of unfinished files, ours and zarr-python's; leftover ones may be removed."""
LEFT_BEHIND: Final = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(PARTIAL)}$")
"""Ends the name of a file that a killed process left unfinished."""

_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_OF_WRITING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_CANNOT_SYNC: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def existing(path: str, key: str) -> Path:
    """Return the path if it exists.

    Raises:
        FileNotFoundError: If it does not; names the option.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"{key}={path!r} does not exist")
    return found


def read_regular(path: Path, *, max_bytes: int | None = None) -> bytes:
    """Return the content of a file; a FIFO or a device would block, or never end.

    Raises:
        ValueError: If it is anything but a regular file, or larger than ``max_bytes``.
        OSError: If it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"{path} has {size} bytes, expected at most {max_bytes}")
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        ValueError: If it is a FIFO, a socket, a device or a folder, also behind a link.
        OSError: If it cannot be opened.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, expected a file")
    return path.open("rb")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of writing that name no file, as those of libraries, the path written to."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _OF_WRITING:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


@contextlib.contextmanager
def replacing(
    path: Path, *, folder: Path | None = None, durable: bool = True
) -> Iterator[Callable[[Any], None]]:
    """Replace a file atomically: yield a write function; commit when the block ends without error.

    The bytes are synced to disk first: a kill or a full disk at any moment leaves the old file or
    the new one. After an error nothing of the new one is left, after a kill at most a temporary
    file, which the next process that writes into its folder removes. Several processes may replace
    the same file concurrently, for example a worker that outlived its build.

    Args:
        path: The file.
        folder: Folder of the temporary file, if not that of ``path``; on the same disk.
        durable: Sync; else the file is whole after a kill, but not after a power cut.

    Raises:
        OSError: If a write fails; the temporary file is removed.
    """
    partial = (folder or path.parent) / f"{path.name}.{uuid.uuid4().hex}{PARTIAL}"
    _remove_leftovers(partial.parent)
    try:
        descriptor = _locked(partial)

        def write(data: Any) -> None:
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(descriptor, view) :]

        try:
            yield write
            if durable:
                os.fsync(descriptor)
            partial.replace(path)  # still locked: no leftover for another process
        finally:
            os.close(descriptor)
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    if durable:
        sync(path.parent)


def _locked(path: Path) -> int:
    """Create a file, locked while its process lives where the disk has locks."""
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return descriptor
        os.close(descriptor)  # taken for a leftover before it was locked


@functools.cache
def _remove_leftovers(folder: Path) -> None:
    """Remove, once per process, files of ``replacing`` whose processes are dead."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - of many thousands, names are enough
            if LEFT_BEHIND.search(name):
                with contextlib.suppress(OSError):
                    _remove_unlocked(folder / name)


def _remove_unlocked(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


def require_ours(folder: Path, key: str, names: Sequence[str], proof: str, text: bytes) -> None:
    """Refuse a folder in which files of another origin would be replaced.

    Args:
        folder: Where a command writes.
        key: The option that names it, for the message.
        names: The files and folders that it writes.
        proof: The file among them that shows whose they are.
        text: What its first bytes hold if this command wrote it.

    Raises:
        FileExistsError: If one of ``names`` is there and ``proof`` is not this command's.
    """
    paths = [folder / name for name in names]
    found = [p for p in paths if os.path.lexists(p) and not (p.is_dir() and not any(p.iterdir()))]
    if not found:
        return
    first = b""
    if (folder / proof).is_file():
        with (folder / proof).open("rb") as file:
            first = file.read(4096)
    if text not in first:
        raise FileExistsError(
            f"{key}={str(folder)!r} holds {found[0].name}, which would be replaced and is not of "
            "this command; choose another folder, or move it away"
        )


def emptied(folder: Path, key: str) -> Path:
    """Return a folder of ours without content, created if need be.

    Only what is in a folder with our marker is removed.

    Args:
        folder: Its path.
        key: The option that names it, for the message.

    Raises:
        FileExistsError: If it holds files and no marker: they are somebody's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    entries = [entry for entry in folder.iterdir() if entry != marker]
    if entries and not marker.is_file():
        raise FileExistsError(
            f"{key}={str(folder)!r} holds files that are not of this command (such as "
            f"{entries[0].name}); choose another folder, or empty it yourself"
        )
    marker.touch()
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return folder


def replace_file(
    path: Path, *parts: bytes | memoryview, folder: Path | None = None, durable: bool = True
) -> None:
    """Write the concatenated ``parts`` to ``path`` atomically, as ``replacing`` does."""
    with replacing(path, folder=folder, durable=durable) as write:
        for part in parts:
            write(part)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk.

    Some network and FUSE disks cannot sync a folder: its entries are as safe there as they get.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
