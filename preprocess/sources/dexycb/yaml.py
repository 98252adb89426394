"""DexYCB's YAML files: scalars, lists, mappings and ``!!python/tuple``, nothing else.

YAML can ask for any Python object, and a few short aliases can stand for gigabytes. The official
``extrinsics.yml`` needs one Python tag, so the loader knows that one and refuses every other. The
events of a file are counted before anything is built: size, nesting, and the values after every
alias has been replaced by what it stands for.
"""

from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from preprocess.records import SourceError

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
"""Deeper nesting would also overflow the stack of libyaml, which composes by recursion."""
MAX_VALUES: Final = 10_000
"""An official file holds about a hundred."""
_TAG: Final = "tag:yaml.org,2002:"
_TUPLE: Final = f"{_TAG}python/tuple"
_PLAIN: Final = tuple(_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))

# libyaml reads the thousand meta.yml five times as fast as the Python parser does.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _RefusedError(ValueError):
    """The words follow the name of the file."""


class _Loader(_Base):  # type: ignore[misc]  # one of two classes of a library without types
    """Plain values and tuples; has none of the other constructors of YAML."""

    yaml_constructors: ClassVar[dict[str, Any]] = {  # replaces those of the base class
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _PLAIN
    }


def _construct_int(loader: Any, node: Any) -> int | str:
    """Keep the name of a recording, 20200709_141754, as text: YAML takes it for a number."""
    return str(node.value) if "_" in node.value else int(loader.construct_yaml_int(node))


def _construct_map(loader: Any, node: Any) -> dict[Any, Any]:
    # Not that of SafeLoader, which also merges mappings (``<<``).
    return dict(yaml.constructor.BaseConstructor.construct_mapping(loader, node, deep=True))


def _construct_list(loader: Any, node: Any) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


def _construct_tuple(loader: Any, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.yaml_constructors |= {
    f"{_TAG}int": _construct_int,
    f"{_TAG}map": _construct_map,
    f"{_TAG}seq": _construct_list,
    _TUPLE: _construct_tuple,
}


def read_yaml(dataset: str, path: Path) -> Any:
    """Return the value in a file.

    Raises:
        SourceError: If the file cannot be read, is no YAML, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{dataset}: cannot read {path} ({error.strerror})") from error
    try:
        if len(data) > MAX_BYTES:
            raise _RefusedError(f"is larger than {MAX_BYTES} bytes")  # noqa: TRY301  # one place to name the file
        _check_events(data)
        return yaml.load(data, Loader=_Loader)  # a safe loader with less in it
    except _RefusedError as error:
        raise SourceError(
            f"{dataset}: {path} {error}; nothing in it was run, unpack the official file again"
        ) from error
    except (yaml.YAMLError, ValueError, LookupError) as error:  # the last two: bad numbers, bools
        raise SourceError(
            f"{dataset}: {path} is not valid YAML ({_reason(error)}); it may be cut off, "
            "unpack the official file again"
        ) from error


def _check_events(data: bytes) -> None:
    """Refuse what would not be plain and small, before it is built.

    Raises:
        _RefusedError: For a tag, depth or number of values that no official file has.
        yaml.YAMLError: If it is no YAML.
    """
    sizes: dict[str, int] = {}  # by anchor: how many values it stands for
    opened: list[tuple[str | None, int]] = []  # anchor, count before it
    count = 0
    for event in yaml.parse(data, Loader=_Base):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _RefusedError(f"has an alias to nothing before it{_line(event)}")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.NodeEvent):
            if event.tag not in (None, "!", _TUPLE, *_PLAIN):
                shown = str(event.tag)[:80]
                raise _RefusedError(
                    f"has the tag {shown!r}{_line(event)}, expected plain values and "
                    "'!!python/tuple'"
                )
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, count))
            elif event.anchor:
                sizes[event.anchor] = 1
            count += 1
        if len(opened) > MAX_DEPTH:
            raise _RefusedError(f"nests values deeper than {MAX_DEPTH} levels{_line(event)}")
        if count > MAX_VALUES:
            raise _RefusedError(
                f"holds more than {MAX_VALUES} values when its aliases are followed"
            )


def _line(event: Any) -> str:
    return f" at line {event.start_mark.line + 1}"


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" at line {mark.line + 1}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return f"{' '.join(str(problem).split())[:200]}{place}"
