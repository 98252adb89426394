"""Checks that every configuration class makes of its own values; imports nothing heavy."""

import dataclasses
import math
import numbers
import os
import types
import typing
from enum import Enum
from typing import Any, Final, TypeVar

E = TypeVar("E", bound=Enum)
MISSING: Final = "???"
"""OmegaConf's text for a value that has to be given."""
NO_OPTION: Final = {"omegaconf_ignore": True}
"""Metadata of a field that is no option, nor part of what is written of a configuration."""


def check_fields(config: Any, group: str = "", /, **bounds: tuple[float, float]) -> None:
    """Bring the values of a config dataclass to the types of its fields, in place.

    In Python an enum may be given by its name or value and a path as a ``Path``, as on the command
    line. Everything else must already have its type, and every number must be finite.

    Args:
        config: Dataclass instance, called from its ``__post_init__``.
        group: Key of the dataclass within the configuration, for messages: "view".
        bounds: Smallest and largest value by field, both included; None passes.

    Raises:
        ValueError: For an unknown enum name, a number that is not finite or out of bounds.
        TypeError: For a value of another type.
    """
    for field in dataclasses.fields(config):
        key = f"{group}.{field.name}" if group else field.name
        value = _converted(key, field.type, getattr(config, field.name))
        setattr(config, field.name, value)
        if field.name in bounds and value is not None:
            least, most = bounds[field.name]
            if not least <= value <= most:
                upper = f" and at most {most:g}" if most < math.inf else ""
                raise ValueError(f"{key} must be at least {least:g}{upper}, got {value}")


def _converted(key: str, kind: Any, value: Any) -> Any:
    """Return ``value`` as ``kind``, a class, a union, or a list or dict of these."""
    if isinstance(value, str) and value == MISSING:
        return value
    if isinstance(kind, types.UnionType):
        return _of_union(key, typing.get_args(kind), value)
    if typing.get_origin(kind) is list:
        (of,) = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise TypeError(f"{key} must be a list, got {shown(value)}")
        return [_converted(f"{key}[{i}]", of, v) for i, v in enumerate(value)]
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{key} must be a dict, got {shown(value)}")
        of = typing.get_args(kind)[1]
        return {name: _converted(f"{key}.{name}", of, v) for name, v in value.items()}
    if issubclass(kind, Enum):
        return member(key, kind, value)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    fits = {float: numbers.Real, int: numbers.Integral}.get(kind, kind)
    if not isinstance(value, fits) or (isinstance(value, bool) and kind in (int, float)):
        raise TypeError(
            f"{key} must be of type {kind.__name__}, got {shown(value)} ({type(value).__name__})"
        )
    if kind not in (int, float):
        return value
    if not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, got {value}")
    return kind(value)


def _of_union(key: str, kinds: tuple[Any, ...], value: Any) -> Any:
    """Return ``value`` as the first of ``kinds`` that it fits."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[:-1]:
        try:
            return _converted(key, kind, value)
        except TypeError:
            continue
    return _converted(key, kinds[-1], value)


def member(key: str, kind: type[E], value: Any) -> E:
    """Return an enum's member from itself or its name.

    Raises:
        ValueError: If there is none; lists the names after ``key``.
    """
    if isinstance(value, kind):
        return value
    for found in kind:
        if value == found.name:
            return found
    raise ValueError(f"{key} must be one of {', '.join(m.name for m in kind)}, got {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as it is written in Python, cut to a line."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


_LONGEST: Final = 120
