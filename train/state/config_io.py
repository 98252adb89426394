"""Configurations as plain JSON values and back."""

from dataclasses import asdict
from enum import Enum
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from model.families import upgraded

T = TypeVar("T")


def to_plain(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested JSON values; enums by name."""
    plain = _plain(asdict(config))
    assert isinstance(plain, dict)
    return plain


def from_plain(schema: type[T], plain: dict[str, Any]) -> T:
    """Return the dataclass that ``to_plain`` took apart, checked against the schema.

    The class of a config group is chosen by the ``family`` in its values.

    Raises:
        ValueError: If a key or value is not of this version.
    """
    plain = dict(plain)
    try:
        node = OmegaConf.structured(schema)
        for group, classes in getattr(schema, "GROUPS", {}).items():
            values = plain[group] = upgraded(plain[group])
            node[group] = OmegaConf.structured(classes()[values["family"]])
        config = OmegaConf.to_object(OmegaConf.merge(node, plain))
    except (OmegaConfBaseException, KeyError) as error:
        raise ValueError(
            f"a configuration of another version of this code: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(config, schema):
        raise TypeError(f"configuration is {type(config).__name__}, expected {schema.__name__}")
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value
