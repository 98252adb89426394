"""The machine's C compilers, in the order in which they are tried; ``CC`` may have arguments."""

import hashlib
import logging
import os
import shlex
import shutil
from pathlib import Path

log = logging.getLogger(__name__)
FIX = "install gcc or clang (apt install gcc), or name a compiler in CC"


def compilers() -> list[list[str]]:
    """Return the command lines of the compilers that are here: that of ``CC``, then cc, gcc, clang.

    ``CC="gcc -pthread"`` and ``CC="ccache gcc"`` are command lines, as in make. One whose program
    is not here is named in the log and left out.
    """
    words = _words_of_cc()
    found = [words] if words and shutil.which(words[0]) else []
    if words and not found:
        log.warning(
            "CC=%r: there is no program %r; another compiler is used", os.environ["CC"], words[0]
        )
    return found + [
        [name] for name in ("cc", "gcc", "clang") if shutil.which(name) and [name] != words
    ]


def cache_folder() -> Path:
    """Return the user's folder for compiled files; it may not exist yet.

    Raises:
        RuntimeError: If the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handloom"


def make_cc_one_program() -> None:
    """Set ``CC`` to a program where it is a command line or nothing that can be started.

    Triton starts it as a single word, to compile its launchers.
    """
    given = os.environ.get("CC")
    if given is None or shutil.which(given):
        return
    words = _words_of_cc()
    if not words or not shutil.which(words[0]):
        compilers()  # names it
        del os.environ["CC"]  # Triton looks for gcc and clang itself
        return
    script = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'.encode()
    try:
        path = cache_folder() / f"cc-{hashlib.sha256(script).hexdigest()[:16]}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_bytes(script)
            partial.chmod(0o755)
            partial.replace(path)
    except (OSError, RuntimeError) as error:
        log.warning("CC=%r: only %r of it is used by Triton: %s", given, words[0], error)
        os.environ["CC"] = words[0]
        return
    os.environ["CC"] = str(path)


def _words_of_cc() -> list[str]:
    """Return the words of ``CC``; a path with spaces that exists is one word."""
    given = os.environ.get("CC", "").strip()
    if shutil.which(given):
        return [given]
    try:
        return shlex.split(given)
    except ValueError:  # a quote without its other half
        return given.split()
