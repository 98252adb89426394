"""Damaged and hostile versions of JSON values, of bytes, and of what is no file."""

import copy
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

DEEP: Final = "[" * 5000 + "]" * 5000
LONG: Final = "A" * 100_000
BAD_VALUES: Final[dict[str, Any]] = {
    "null": None, "true": True, "minus one": -1, "zero": 0, "a half": 0.5, "2^31": 2**31,
    "2^63": 2**63, "1e30": 10**30, "minus 2^63": -(2**63), "1e308": 1e308, "empty text": "",
    "text": "x", "path": "../../outside", "long text": LONG, "list": [], "dict": {},
    "list of lists": [[[]]], "zeros": [0] * 2000,
}  # fmt: skip
LITERALS: Final = {"NaN": "NaN", "infinity": "-Infinity", "1e999": "1e999", "deep": DEEP}
"""What JSON has no value for, as text in its place."""
_MARK: Final = "@@HERE@@"


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value within a JSON value, of lists the first two and the last."""
    if isinstance(value, dict):
        inner: list[tuple[str | int, Any]] = list(value.items())
    elif isinstance(value, list):
        numbered: list[tuple[str | int, Any]] = list(enumerate(value))
        inner = numbered if len(numbered) < 4 else [*numbered[:2], numbered[-1]]
    else:
        return
    for key, one in inner:
        yield (*at, key)
        yield from places(one, (*at, key))


def replaced(value: Any, at: tuple[str | int, ...], by: Any) -> Any:
    """Return a value with one in it replaced."""
    made = copy.deepcopy(value)
    inner = made
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = by
    return made


def without(value: Any, at: tuple[str | int, ...]) -> Any:
    """Return a value with one in it left out."""
    made = copy.deepcopy(value)
    inner = made
    for key in at[:-1]:
        inner = inner[key]
    del inner[at[-1]]
    return made


def json_texts(value: Any) -> Iterator[tuple[str, str]]:
    """Yield names and texts of damaged versions of a JSON value."""
    for at in places(value):
        where = ".".join(map(str, at))
        for name, bad in BAD_VALUES.items():
            yield f"{where} = {name}", json.dumps(replaced(value, at, bad))
        for name, text in LITERALS.items():
            marked = json.dumps(replaced(value, at, _MARK))
            yield f"{where} = {name}", marked.replace(json.dumps(_MARK), text)
        yield f"{where} left out", json.dumps(without(value, at))
    for name, bad in BAD_VALUES.items():
        yield f"whole = {name}", json.dumps(bad)
    if isinstance(value, dict) and value:
        key = next(iter(value))
        text = json.dumps(value)
        again = f'"{key}": {json.dumps(value[key])}'
        yield f"{key} twice", f"{text[:-1]}, {again}}}"
    yield "trailing text", json.dumps(value) + "x"
    yield "empty", ""


def damaged_bytes(data: bytes, draw: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield ``count`` damaged versions: cut, a bit flipped, a hole of zeros, bytes inserted."""
    for i in range(count):
        at = draw.randrange(len(data))
        kind = ("cut", "flipped", "hole", "grown")[i % 4]
        made = bytearray(data)
        if kind == "cut":
            del made[at:]
        elif kind == "flipped":
            made[at] ^= 1 << draw.randrange(8)
        elif kind == "hole":
            end = min(len(made), at + draw.choice((1, 16, 4096)))
            made[at:end] = bytes(end - at)
        else:
            made[at:at] = draw.randbytes(draw.choice((1, 7, 300)))
        if bytes(made) != data:
            yield f"{kind} at {at}", bytes(made)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # the address of a socket is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES: Final[dict[str, Callable[[Path], None]]] = {
    "FIFO": _fifo,
    "link to a FIFO": _link_to_fifo,
    "socket": _socket,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to("/dev/null"),
    "link to itself": _loop,
    "folder": Path.mkdir,
    "nothing": lambda _: None,
}
"""Put something else in the place of a file."""
