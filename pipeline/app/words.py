"""Console messages and "did you mean" hints."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


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
    """Return an error as one line: the first paragraph of its message."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename!r}"
    return " ".join(str(error).split()) or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint: the known name closest to ``word``, else all of them."""
    names = list(known)
    near = closest(word, names)
    return f"choose from: {', '.join(names)}" if near is None else f"did you mean {near!r}?"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to ``word``; None if none is close."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return near[0] if near else None
