"""Large dictionaries of a ``.npy`` file one at a time, for files that do not fit into memory.

ARCTIC's splits hold 18 GB in one pickle. It is read as ``read`` reads any, from a mapping of the
file; a dictionary with given keys is handed over when it is complete, then emptied, and what was
stored to be recalled by later steps is forgotten with it.
"""

import itertools
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.pickles.machine import Machine
from pipeline.pickles.plain_arrays import parse_npy
from pipeline.pickles.read import PickleError, check_values, machine_value

MAX_STEPS: Final = 50_000_000
"""Three for each of 1.5 million names of images, and 500 for a part."""
_HEADER: Final = 16 << 10
_SHORT: Final = 64
"""Bytes: longer ones are data of one array, shorter ones NumPy's own words."""


def read_npy_parts(
    path: Path,
    *,
    name: str,
    keys: frozenset[str],
    take: Callable[[str, dict[str, Any]], None],
    max_steps: int = MAX_STEPS,
) -> np.ndarray:
    """Return the object array of a ``.npy`` file without its parts, which ``take`` gets.

    Args:
        path: The file.
        name: What errors call it.
        keys: A dictionary that has all of them is a part. A pickle sets a thousand items at once
            (protocol 0, which NumPy does not write, one); what is set later stays in the rest.
        take: Called with the key that the part has in the dictionary around it (empty: none) and
            the part. It must keep no reference and not raise ``ValueError``.
        max_steps: Most steps of the pickle.

    Raises:
        PickleError: If the file is broken, or holds anything else than plain data.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER)
        try:
            shape, dtype, _, payload = parse_npy(head, objects=True)
        except ValueError as error:
            raise PickleError(f"{name} is refused: {error}") from error
        if not dtype.hasobject:
            raise PickleError(f"{name} is refused: it has numbers, expected dictionaries")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            machine = _Parts(data, len(head) - len(payload), keys, take)
            array = machine_value(machine, name, max_steps)
    if not isinstance(array, np.ndarray) or array.shape != shape or not array.dtype.hasobject:
        raise PickleError(f"{name} is refused: its pickle is no object array of shape {shape}")
    return array


def _is_large(value: Any) -> bool:
    if type(value) is bytes:
        return len(value) > _SHORT
    value = getattr(value, "built", value)  # an array under construction has its data there
    return isinstance(value, (np.ndarray, bytearray, tuple, list, dict))


class _Forgotten:
    """What stands in the memo for a value of an earlier part."""


class _Parts(Machine):
    """A machine that gives its parts away."""

    def __init__(
        self,
        data: mmap.mmap,
        begin: int,
        keys: frozenset[str],
        take: Callable[[str, dict[str, Any]], None],
    ) -> None:
        super().__init__(data, frozenset(), objects=True, begin=begin)
        self.keys = keys
        self.take_part = take
        self.kept = 0

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict on top; give it away if it is a part."""
        super().set_items(items)
        part = self.top()
        if not self.keys <= part.keys():
            return
        check_values(part, 2 * len(self.data) + 2**20)
        key = self.stack[-2] if len(self.stack) > 1 else ""
        self.take_part(key if type(key) is str else "", part)
        part.clear()
        for index in list(itertools.islice(self.memo, self.kept, None)):
            if _is_large(self.memo[index]):
                self.memo[index] = _Forgotten()
        self.kept = len(self.memo)

    def get(self, index: int) -> Any:
        """Return a stored value, if it is not one of an earlier part."""
        value = super().get(index)
        if type(value) is _Forgotten:
            raise ValueError(f"it recalls value {index} of an earlier part")
        return value
