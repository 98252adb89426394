"""Safe parser for DexYCB's YAML files: scalars, lists, mappings and ``!!python/tuple`` only.

Safe YAML plus the one Python tag that the official ``extrinsics.yml`` needs. The events of a file
are counted before any object is built: a few short aliases can expand to gigabytes, and deep
nesting overflows the stack of libyaml, which composes recursively.
"""

from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from preprocess.records import SourceError
from preprocess.sources.annotations import check_regular

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 10_000
"""Limit on values; an official file has about a hundred."""
_TAG: Final = "tag:yaml.org,2002:"

# libyaml is five times as fast as the Python parser on the thousand meta.yml files.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _RefusedError(ValueError):
    """A rejected file; the message continues the sentence after the file name."""


def _construct_int(loader: Any, node: Any) -> int | str:
    """Keep a recording name such as 20200709_141754 as text: YAML reads it as a number."""
    return str(node.value) if "_" in node.value else int(loader.construct_yaml_int(node))


def _construct_tuple(loader: Any, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _refuse_tag(_: Any, node: Any) -> None:
    raise _RefusedError(
        f"has the tag {node.tag[:80]!r}{_line(node)}, expected plain values and '!!python/tuple'"
    )


class _Loader(_Base):  # type: ignore[misc]  # one of two classes of a library without types
    """Plain values and tuples; no dates, sets or binary data."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        **{_TAG + kind: _Base.yaml_constructors[_TAG + kind]
           for kind in ("null", "bool", "float", "str", "seq", "map")},
        f"{_TAG}int": _construct_int,
        f"{_TAG}python/tuple": _construct_tuple,
        None: _refuse_tag,
    }  # fmt: skip


def read_yaml(dataset: str, path: Path) -> Any:
    """Read the value in a file.

    Raises:
        SourceError: If the file cannot be read, is not YAML, or holds any other tag or type.
    """
    check_regular(dataset, path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{dataset}: cannot read {path} ({error.strerror})") from error
    try:
        _check_size(data)
        return yaml.load(data, Loader=_Loader)  # a restricted safe loader
    except _RefusedError as error:
        raise SourceError(
            f"{dataset}: {path} {error}; nothing in it was run, unpack the official file again"
        ) from error
    except (yaml.YAMLError, ValueError, LookupError) as error:  # the last two: bad numbers, bools
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        shown = " ".join(str(problem).split())[:200]
        place = "" if mark is None else f" at line {mark.line + 1}"
        raise SourceError(
            f"{dataset}: {path} is not valid YAML ({shown}{place}); it may be cut off, "
            "unpack the official file again"
        ) from error


def _check_size(data: bytes) -> None:
    """Reject more bytes, levels or values than any official file has; aliases count expanded.

    Raises:
        _RefusedError: If a limit is exceeded, or an alias refers to itself.
        yaml.YAMLError: If it is not YAML.
    """
    if len(data) > MAX_BYTES:
        raise _RefusedError(f"is larger than {MAX_BYTES} bytes")
    sizes: dict[str | None, int] = {}  # by anchor: number of values it expands to
    opened: list[tuple[str | None, int]] = []  # anchor, count before it
    count = 0
    for event in yaml.parse(data, Loader=_Base):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _RefusedError(f"has an alias to nothing before it{_line(event)}")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = count - before
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1
            count += 1
        if len(opened) > MAX_DEPTH:
            raise _RefusedError(f"nests values deeper than {MAX_DEPTH} levels{_line(event)}")
        if count > MAX_VALUES:
            raise _RefusedError(
                f"holds more than {MAX_VALUES} values when its aliases are followed"
            )


def _line(marked: Any) -> str:
    return f" at line {marked.start_mark.line + 1}"
