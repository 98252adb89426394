"""Pickles of body models and datasets, read without running anything in them.

A pickle is a program: its steps may import any module and call anything in it. Python's unpickler
with a filter on names still calls methods of what is let through, changes it (``BUILD``), hashes
nested keys without limit and allocates what a length says before it looks at the file. So this is
no unpickler with a filter but a reader of its own: it knows the steps that build plain data, in
every protocol, and imports nothing. NumPy arrays are rebuilt from (shape, type, bytes), and the
classes in ``allow`` become ``Instance``, a name with a dict.

Bounded: file size, steps, nesting, integers, keys, bytes copied, and the size to which shared
values unfold when walked. Text of Python 2 is read as latin-1, as the datasets ask for.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.pickles.machine import Instance, Machine, Name, kind
from pipeline.pickles.plain_arrays import parse_npy, plain_array
from pipeline.pickles.steps import run

MAX_BYTES: Final = 64 * 2**20
MAX_STEPS: Final = 200_000
"""A MANO file takes 430 steps."""
MAX_DEPTH: Final = 64
_UNFOLD: Final = 32
"""Shared values may unfold to this many times the file, and 1 MiB."""

_NOT_PICKLES: Final = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a .npy file",
    b"version https://git-lfs": "a Git LFS pointer",
}


class PickleError(ValueError):
    """A pickle is broken, or asks for more than plain data; one sentence."""


def load_pickle(
    source: Path | bytes,
    *,
    name: str,
    allow: frozenset[Name] = frozenset(),
    max_bytes: int = MAX_BYTES,
    max_steps: int = MAX_STEPS,
) -> Any:
    """Return the value in a pickle: None, numbers, text, bytes, containers, arrays, instances.

    Args:
        source: File or its content.
        name: What errors call it.
        allow: Classes that may appear; they become ``Instance``.
        max_bytes: Largest file.
        max_steps: Most steps, about two for each value.

    Raises:
        PickleError: If the file is too large, broken, or holds anything else.
        OSError: If it cannot be read.
    """
    data = _read(source, name, max_bytes)
    return machine_value(Machine(data, allow, objects=False), name, max_steps)


def load_npy(
    source: Path | bytes,
    *,
    name: str,
    allow: frozenset[Name] = frozenset(),
    max_bytes: int = MAX_BYTES,
    max_steps: int = MAX_STEPS,
) -> np.ndarray:
    """Return the array of a ``.npy`` file; one of objects holds a pickle, read as above.

    Args:
        source: File or its content.
        name: What errors call it.
        allow: Classes that may appear in an object array.
        max_bytes: Largest file.
        max_steps: Most steps of the pickle.

    Raises:
        PickleError: If the file is too large, broken, or holds anything else.
        OSError: If it cannot be read.
    """
    data = _read(source, name, max_bytes)
    try:
        shape, dtype, fortran, payload = parse_npy(data, objects=True)
        if not dtype.hasobject:
            return plain_array(shape, dtype, payload, fortran=fortran)
    except ValueError as error:
        raise PickleError(f"{name} is refused: {error}") from error
    array = machine_value(Machine(payload, allow, objects=True), name, max_steps)
    if not isinstance(array, np.ndarray) or array.shape != shape or not array.dtype.hasobject:
        raise PickleError(f"{name} is refused: its pickle is no object array of shape {shape}")
    return array


def _read(source: Path | bytes, name: str, max_bytes: int) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        with source.open("rb") as file:
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise PickleError(f"{name} is refused: it is larger than {max_bytes} bytes")
    return data


def machine_value(machine: Machine, name: str, max_steps: int) -> Any:
    """Return the value of a pickle that a machine is at the beginning of.

    Raises:
        PickleError: If it is broken or holds anything but plain data.
    """
    if not machine.data:
        raise PickleError(f"{name} is refused: it is empty")
    for start, what in _NOT_PICKLES.items():
        if machine.data[machine.begin : machine.begin + len(start)] == start:
            raise PickleError(f"{name} is refused: it is {what}, not a pickle")
    try:
        value = run(machine, max_steps)
        check_values(value, _UNFOLD * len(machine.data) + 2**20)
    except ValueError as error:  # also the UnicodeError of a broken text
        raise PickleError(
            f"{name} is refused at byte {machine.start}: {error}; nothing in it was run"
        ) from error
    return value


# --- what was read --------------------------------------------------------------------------------

_PLAIN: Final = (type(None), bool, int, float, Instance)
_CONTAINERS: Final = (list, tuple, set, frozenset, dict)


def check_values(root: Any, limit: int) -> None:
    """Refuse values that a caller could not walk safely.

    An ``Instance`` is a leaf where it appears, and its state is walked once, on its own: whoever
    goes from one to the next does so knowingly.

    Args:
        root: What the machine made.
        limit: Largest size when every shared value counts as often as it is referred to: bytes of
            texts and arrays, plus one for each value.

    Raises:
        ValueError: For a name or an unfinished array among the values, a container inside itself,
            more than ``MAX_DEPTH`` levels, more than ``limit``.
    """
    sizes: dict[int, int] = {}  # by id; ``root`` keeps every container alive
    seen: set[int] = set()
    waiting = [root]
    total = 0
    while waiting:
        path = [_Level((waiting.pop(),))]
        opened: set[int] = set()
        while path:
            level = path[-1]
            for child in level.children:
                size = sizes.get(id(child)) if _is_container(child) else _leaf_size(child)
                if size is None:
                    if id(child) in opened:
                        raise ValueError("it has a container inside itself")
                    if len(path) > MAX_DEPTH:
                        raise ValueError(f"it has more than {MAX_DEPTH} containers in each other")
                    opened.add(id(child))
                    path.append(_Level(child))
                    break
                if type(child) is Instance and id(child) not in seen:
                    seen.add(id(child))
                    waiting.append(child.state)
                level.size += size
            else:
                path.pop()
                opened.discard(id(level.value))
                sizes[id(level.value)] = level.size
                if path:
                    path[-1].size += level.size
                else:
                    total += level.size
            if total + level.size > limit:
                raise ValueError(f"its shared values unfold to more than {limit} bytes")


class _Level:
    """A container on the way down, with the children that are still to come."""

    __slots__ = ("children", "size", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.size = 1
        self.children: Iterator[Any] = iter(value.ravel() if type(value) is np.ndarray else value)
        if type(value) is dict:
            self.children = itertools.chain(value, value.values())


def _is_container(value: Any) -> bool:
    return type(value) in _CONTAINERS or (type(value) is np.ndarray and value.dtype.hasobject)


def _leaf_size(value: Any) -> int:
    if type(value) in (str, bytes, bytearray):
        return 1 + len(value)
    if type(value) is np.ndarray:
        return 1 + value.nbytes
    if type(value) in _PLAIN or isinstance(value, np.generic):
        return 1
    raise ValueError(f"it has {kind(value)} among its values")
