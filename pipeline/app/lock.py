"""A lock that one process holds on a folder: for builds and runs, of which only one may write it.

The lock file names its holder. Where the file system has ``flock``, the kernel says whether the
holder still lives, also across the hosts of a network disk; elsewhere the process that is named
does, if it is one of this host.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

_NO_FLOCK: Final = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL})


class FolderInUseError(OSError):
    """Another process writes this folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    since: str
    """Local time."""
    ticks: int
    """Start of the process, clock ticks after the host's start: a number is given out again."""

    @classmethod
    def this(cls) -> Self:
        """Return this process."""
        now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M}"
        pid = os.getpid()
        return cls(host=socket.gethostname(), pid=pid, since=now, ticks=_start_ticks(pid))

    @classmethod
    def named_in(cls, text: bytes) -> Self | None:
        """Return the holder that a lock file names; None if it names none."""
        try:
            found = json.loads(text)
            return cls(
                host=str(found["host"]),
                pid=int(found["pid"]),
                since=str(found["since"]),
                ticks=int(found["ticks"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def locked(
    file: Path, doing: str, *, instead: str, say: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Hold a lock file, which is removed at the end; so are folders made for it, if still empty.

    Args:
        file: The lock file; its folder is created.
        doing: What its holder does, for messages: "another run trains in runs/a".
        instead: What a user who is refused can do: "choose another run_dir".
        say: Told that the lock of a process that was killed is taken over.

    Raises:
        FolderInUseError: If another process holds it, or may hold it.
        OSError: If the file cannot be written.
    """
    created = [folder for folder in file.parents if not folder.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(file, doing, instead, say)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is stale then, and taken over
            file.unlink()
            for folder in created:
                folder.rmdir()
        os.close(descriptor)


def _acquire(file: Path, doing: str, instead: str, say: Callable[[str], None]) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _take(descriptor, file, doing, instead, say):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(
    descriptor: int, file: Path, doing: str, instead: str, say: Callable[[str], None]
) -> bool:
    """Take the lock by an open file; False if that file was removed meanwhile."""
    has_flock = _flock(descriptor)
    holder = Holder.named_in(os.pread(descriptor, 4096, 0))
    if has_flock is None:
        named = str(holder) if holder else "a process that did not give its name"
        raise FolderInUseError(f"{doing} ({named}); wait for it, stop it, or {instead}")
    if not _is_at(descriptor, file):
        return False
    if not has_flock and holder and not _is_gone(holder):
        raise FolderInUseError(
            f"{doing} ({holder}; this file system has no locks that would tell whether it still "
            f"runs); wait for it, stop it, {instead}, or remove {file} if it ended"
        )
    if holder:
        say(f"{file.parent}: taken over from {holder}, which ended without finishing")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(Holder.this())).encode(), 0)
    return True


def _flock(descriptor: int) -> bool | None:
    """Lock an open file; None if another process has, False if the file system cannot."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _is_gone(holder: Holder) -> bool:
    """Return whether a process is known to have ended."""
    return holder.host == socket.gethostname() and _start_ticks(holder.pid) != holder.ticks


def _start_ticks(pid: int) -> int:
    """Return when a process of this host started; -1 if there is none."""
    try:
        # The name, in parentheses, may contain spaces; the start is the 20th field behind it.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return -1
