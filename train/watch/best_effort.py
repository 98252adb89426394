"""What a run can do without: a failure costs a warning, not the training."""

from collections.abc import Callable
from typing import TypeVar

from pipeline.app.words import sentence

T = TypeVar("T")


class BestEffort:
    """Calls what the training can do without; warns of the first failure of each kind."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._failed: set[str] = set()

    def __call__(self, what: str, call: Callable[[], T]) -> T | None:
        """Return the result of a call; None after a failure, whose warning names ``what``.

        Any exception counts: a broken library raises what it likes.
        """
        try:
            return call()
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                self._say(f"warning: {what} failed: {sentence(error)}; going on without")
            return None
