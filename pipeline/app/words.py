"""Words for people: a line as it is meant to be read, a hint at the name that was meant."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str, console: "Console | None" = None) -> None:
    """Print text as it is: brackets in a path are no markup, and no line is broken.

    Args:
        text: One line or several.
        console: Where to; stdout by default.
    """
    from rich.console import Console  # the front door answers without it

    (console or Console()).print(text, highlight=False, markup=False, soft_wrap=True)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint: the known name closest to ``word``, else all of them."""
    names = list(known)
    near = closest(word, names)
    return f"choose from: {', '.join(names)}" if near is None else f"did you mean {near!r}?"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``word`` may have been meant to be; None if none is close."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return near[0] if near else None
