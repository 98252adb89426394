"""Configurations as plain JSON values and back."""

import dataclasses
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from model.config import ModelConfig
from model.families import config_class, upgraded
from model.fields import NO_OPTION

T = TypeVar("T")


def to_plain(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested JSON values; enums by name."""
    plain = _plain(dataclasses.asdict(config))
    assert isinstance(plain, dict)
    left_out = {field.name for field in dataclasses.fields(config) if field.metadata == NO_OPTION}
    return {key: value for key, value in plain.items() if key not in left_out}


def from_plain(kind: type[T], plain: Mapping[str, Any]) -> T:
    """Return the config dataclass that ``to_plain`` took apart; what is absent has its default.

    The class of a ``ModelConfig`` is that of the ``family`` in its values. Text is literal.

    Raises:
        ValueError: If a key or a value is not of this version.
    """
    try:
        found = _built(kind, plain, "")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"a configuration of another version of this code: {error}") from error
    assert isinstance(found, kind)
    return found


def _built(kind: type[Any], plain: Mapping[str, Any], prefix: str) -> Any:
    if issubclass(kind, ModelConfig):
        plain = upgraded(dict(plain))
        kind = config_class(plain["family"])
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in plain.items():
        if name not in fields:
            raise TypeError(f"{prefix}{name} is not a key of {kind.__name__}")
        of = fields[name]
        entry = typing.get_args(of)[1] if typing.get_origin(of) is dict else None
        if isinstance(of, type) and dataclasses.is_dataclass(of):
            values[name] = _built(of, value, f"{prefix}{name}.")
        elif isinstance(entry, type) and dataclasses.is_dataclass(entry):
            path = f"{prefix}{name}."
            values[name] = {key: _built(entry, v, f"{path}{key}.") for key, v in value.items()}
        else:
            values[name] = value
    return kind(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value
