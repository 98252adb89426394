"""Records from files: JSON and the values of archives, checked before they are used.

msgspec holds a value against annotations: a dataclass, ``Annotated[int, Meta(ge=1)]``, lists and
dicts of these. A message names the place: ``num_rows: expected int >= 1``.
"""

import json
import math
import re
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

MAX_DEPTH: Final = 64
"""Deepest nesting of a record; deeper JSON has no use, and may overflow a reader's stack."""
Count = Annotated[int, Meta(ge=0, le=2**62)]
_QUOTED: Final = re.compile(r"'([^']{80})[^']+'")
_PLACE: Final = re.compile(r"^(?P<problem>.*) - at `\$?\.?(?P<key>.*)`$", re.DOTALL)

T = TypeVar("T")


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text; NaN and infinities are accepted, as Python writes them.

    Raises:
        ValueError: If it is no JSON, or nested deeper than ``MAX_DEPTH``.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [v for v in level if isinstance(v, dict | list)]
        level = [v for i in inner for v in (i.values() if isinstance(i, dict) else i)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def as_record(kind: type[T], value: Any) -> T:
    """Return a plain value as a typed record: nothing is converted, numbers are finite.

    Args:
        kind: A dataclass or any other annotation; unknown keys are ignored.
        value: Dicts, lists, numbers, text.

    Raises:
        ValueError: If the value does not fit; names the place in it.
    """
    try:
        record = msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(_sentence(str(error))) from None
    return record


def decode_record(kind: type[T], data: bytes) -> T:
    """Return a JSON text as a typed record, as ``as_record`` does, without a detour.

    Raises:
        ValueError: If it is no JSON or does not fit; names the place in it.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(_sentence(str(error))) from None


def are_finite(*values: float) -> bool:
    """Return whether all numbers are finite."""
    return all(map(math.isfinite, values))


def _sentence(message: str) -> str:
    """Return msgspec's message with the place first, without its backquotes."""
    message = _QUOTED.sub(r"'\1...'", message)  # a value of any length
    found = _PLACE.match(message)
    if found is None:
        return message.replace("`", "")
    problem = found["problem"].replace("`", "").replace("Expected", "expected", 1)
    problem = problem.replace("Object missing", "missing", 1)
    return f"{found['key']}: {problem}" if found["key"] else problem
