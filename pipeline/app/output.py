"""Standard output and error that may go away: a closed pipe, a hung-up terminal, a full disk."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class LastingStream:
    """A text stream whose failures to write end the output, not the program."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; nothing any more after a failure."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._silence(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, if the output is still there."""
        try:
            self._stream.flush()
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        """Send what is buffered, and all that follows, nowhere; also of child processes."""
        if error.errno not in (errno.EPIPE, errno.EIO) and self is sys.stdout:
            print(f"standard output is lost from here on: {error.strerror}", file=sys.stderr)  # noqa: T201
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` outlive their readers, and print any text.

    A character that the output's encoding lacks, as in a file name that is not UTF-8, is escaped.
    Closed descriptors are opened on nothing, so that no data file takes their place.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            with contextlib.suppress(AttributeError, ValueError):  # a test's stream
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, LastingStream(stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
