"""Console messages and "did you mean" hints."""

import difflib
import errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

_FIXES: Final = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions, or choose another folder",
    errno.EPERM: "check the permissions, or choose another folder",
    errno.EROFS: "that disk is read-only; choose another folder",
    errno.ENOSPC: "free space on that disk, or choose another folder",
    errno.EDQUOT: "your quota on that disk is used up; free space, or choose another folder",
    errno.EISDIR: "expected a file, it is a folder",
    errno.ENOTDIR: "expected a folder, part of the path is a file",
    errno.EEXIST: "move it away, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "the machine has too many open files; close programs",
    errno.EIO: "the disk reports damage; copy the file from elsewhere, or check the disk",
    errno.ESTALE: "the network disk lost it; mount the disk again",
    errno.ENOMEM: "free memory, or use fewer workers",
}
"""What to do about an error of the operating system."""


def say(text: str, console: "Console | None" = None) -> None:
    """Print text verbatim: without markup (brackets in a path) and without line wrapping.

    What a terminal would take as a command or cannot show is escaped.

    Args:
        text: One line or several.
        console: Output console; stdout by default.
    """
    from rich.console import Console  # not needed by the CLI's own answers

    (console or Console()).print(
        "\n".join(map(printable, text.split("\n"))), highlight=False, markup=False, soft_wrap=True
    )


def printable(text: str) -> str:
    r"""Return text with control, formatting and undecodable characters as ``\x1b``, ``\udcff``."""
    return "".join(
        char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in text
    )


def sentence(error: BaseException) -> str:
    """Return an error as one line: its whole message; of the operating system's, the fix too."""
    if not isinstance(error, OSError) or not error.strerror:
        return " ".join(str(error).split()) or type(error).__name__
    names = [one for one in (error.filename, error.filename2) if one is not None]
    where = f": {' -> '.join(map(_path, names))}" if names else ""
    fix = _FIXES.get(error.errno or 0)
    return f"{error.strerror}{where}" + (f"; {fix}" if fix else "")


def _path(name: Any) -> str:
    return repr(name if isinstance(name, str) else os.fsdecode(name))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint: the known name closest to ``word``, else all of them."""
    names = list(known)
    near = closest(word, names)
    return f"choose from: {', '.join(names)}" if near is None else f"did you mean {near!r}?"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to ``word``; None if none is close."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return near[0] if near else None
