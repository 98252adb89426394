"""The CLI shared by every ``python -m <package> <command>``.

Parses ``key=value`` arguments (or ``--key value``) into one validated dataclass with Hydra's
compose and calls the command's ``main(config) -> int``. The field docstrings of the schema are the
``--help``. User errors are one sentence on stderr and exit code 2. Nothing heavy is imported before
the arguments are validated.
"""

import ast
import dataclasses
import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import os
import re
import sys
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.app.output import lasting_output
from pipeline.app.words import closest, nearest, printable, sentence

if TYPE_CHECKING:  # not needed to answer --help
    from omegaconf import DictConfig

ROOT: Final = Path(__file__).resolve().parent.parent.parent
_GROUPS_SEEN: Final = set[str]()
"""Names of Hydra's groups, which its store keeps as long as the process."""
USER_ERRORS: Final = (ValueError, OSError)
"""Raised for invalid user input or environment; any other exception is a bug of ours."""


PLACEHOLDER: Final = "NAME"
"""Placeholder in a key for the user-chosen name of a dict entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command: ``module`` holds ``main(config) -> int`` and is imported only to run it."""

    name: str
    module: str
    config: str
    """``module:class`` of the schema; its module imports nothing heavy."""
    summary: str
    multirun: str | None = None
    """``module:function`` that runs the ``GridPoint``s of ``--multirun``; None: not supported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridPoint:
    """One configuration of ``--multirun``."""

    chosen: dict[str, str]
    """The keys that vary over the grid, and their values here, as written."""
    config: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One settable key of a schema."""

    key: str
    type_hint: Any
    default: Any
    doc: str


class UsageError(ValueError):
    """The command-line arguments are not valid for the command."""


def front_door(prog: str, commands: Sequence[Command], argv: Sequence[str]) -> int:
    """Run one command and return the exit code: 0 success, 1 a check failed, 2 user error.

    ``HANDLOOM_TRACEBACK=1`` also shows the traceback of a user error. Output that nobody reads any
    more (``| head``, a closed terminal) is dropped; the command goes on.
    """
    with lasting_output():
        return _run(prog, commands, argv)


def _run(prog: str, commands: Sequence[Command], argv: Sequence[str]) -> int:
    by_name = {command.name: command for command in commands}
    if argv and argv[0] == "--version":
        print(_version())  # noqa: T201
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(prog, commands))  # noqa: T201
        return 0 if argv else 2
    name, *words = argv
    try:
        check_siblings(prog)
        if name not in by_name:
            raise UsageError(
                f"unknown command {name!r}; {nearest(name, by_name)}"  # answered before imports
            )
        command = by_name[name]
        schema = _imported(command.config)
        if any(word in ("-h", "--help") for word in words):
            given = list(_equals([word for word in words if word not in ("-h", "--help")]))
            chosen = chosen_groups(schema, given)
            text = _docstring_of_main(command.module)
            has_grid = command.multirun is not None
            print(_help(f"{prog} {name}", text, schema, chosen, multirun=has_grid))  # noqa: T201
            return 0
        if "--multirun" in words:
            if command.multirun is None:
                raise UsageError("--multirun is for training: python -m train run --multirun ...")
            points = grid(schema, [word for word in words if word != "--multirun"])
            return int(_imported(command.multirun)(points))
        shows_only = _without_cfg(words)
        config = compose(schema, words if shows_only is None else shows_only)
        if shows_only is not None:
            print(_as_yaml(config), end="")  # noqa: T201
            return 0
        return int(_imported(f"{command.module}:main")(config))
    except KeyboardInterrupt:
        print(f"{prog} {name}: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except USER_ERRORS as error:
        if os.environ.get("HANDLOOM_TRACEBACK") == "1":
            raise
        print(f"{prog} {name}: {printable(sentence(error))}", file=sys.stderr)  # noqa: T201
        return 2


def check_siblings(prog: str) -> None:
    """Refuse to run if another package shadows one of ours.

    Raises:
        UsageError: If ``pipeline``, ``preprocess``, ``model`` or ``train`` would be imported from
            a folder that is not ours.
    """
    for name in ("pipeline", "preprocess", "model", "train"):
        spec = importlib.util.find_spec(name)
        origin = None if spec is None else spec.origin
        expected = ROOT / name / "__init__.py"
        if origin is None or Path(origin).resolve() != expected:
            script = prog.replace("python -m ", "handloom-").replace("benchmarks", "bench")
            found = origin or (list(spec.submodule_search_locations or [])[:1] if spec else None)
            raise UsageError(
                f"{found} hides Handloom's own package {name!r} ({expected.parent}); run from "
                f"another folder or use the console script {script}"
            )


def _imported(name: str) -> Any:
    """Return the object behind ``module:name``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _version() -> str:
    try:
        return f"Handloom {importlib.metadata.version('handloom')}"
    except importlib.metadata.PackageNotFoundError:
        return f"Handloom, not installed, from {ROOT}"


def _without_cfg(words: Sequence[str]) -> list[str] | None:
    """Return the words beside Hydra's ``--cfg job``; None if it is not there.

    Raises:
        UsageError: If something else than ``job`` is asked for.
    """
    words = [
        part
        for word in words
        for part in ([*word.split("=", 1)] if word.startswith("--cfg=") else [word])
    ]
    if "--cfg" not in words:
        return None
    i = words.index("--cfg")
    if words[i + 1 : i + 2] != ["job"]:
        raise UsageError("--cfg job prints the composed configuration; nothing else can be shown")
    return [*words[:i], *words[i + 2 :]]


def _as_yaml(config: Any) -> str:
    import yaml

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value.name if isinstance(value, Enum) else value

    return str(yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False))


# --- composing ------------------------------------------------------------------------------------


def compose(schema: type[Any], words: Sequence[str]) -> Any:
    """Return ``schema`` filled from the arguments ``words`` (``key=value``), validated.

    A schema may name a folder of YAML deltas in the class attribute ``EXPERIMENTS`` (adds the key
    ``experiment``), short spellings of nested keys in ``ALIASES``, fields whose class is chosen by
    name in ``GROUPS`` (``model=NAME``; in YAML ``defaults: [override /model: NAME]``), and in
    ``SPELLINGS`` words that are not of an option's type with what they stand for. A field ``given``
    that is no option gets the keys of ``words``.

    Raises:
        UsageError: For an unknown key, group or value, a missing required value, a type error.
        ValueError: From the schema's own ``__post_init__``.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    words = list(_equals(words))
    chosen = chosen_groups(schema, words)
    options = {option.key: option for option in _options(schema, classes=chosen)}
    aliases: dict[str, str] = getattr(schema, "ALIASES", {})
    spellings: dict[str, str] = getattr(schema, "SPELLINGS", {})
    habits: dict[str, str] = getattr(schema, "HABITS", {})
    experiments: Path | None = getattr(schema, "EXPERIMENTS", None)
    groups = set(chosen)
    overrides = [
        _override(word, options, aliases, experiments, groups, habits)
        for word in words
        if word.partition("=")[0] not in groups
    ]
    overrides = [spellings.get(override, override) for override in overrides]
    store = ConfigStore.instance()
    for group in ("experiment", *_GROUPS_SEEN):  # of an earlier call: a key may have that name
        store.repo.pop(group, None)
    _GROUPS_SEEN.update(chosen)
    experiment = dict(word.split("=", 1) for word in words if "=" in word).get("experiment", "")
    if experiments and _is_file_name(experiment):
        path = _experiment_path(experiments, experiment)
        store.store(group="experiment", name="given", node=_loaded(path), package="_global_")
    node = OmegaConf.structured(schema)
    defaults: list[Any] = ["schema"]
    for group, kind in chosen.items():
        (base,) = (f.type for f in dataclasses.fields(schema) if f.name == group)
        node[group] = OmegaConf.structured(base)  # any subclass can be merged into it
        store.store(group=group, name="chosen", node=kind)
        defaults.append({group: "chosen"})
        overrides.append(f"{group}=chosen")  # must follow an experiment's own override
    store.store(name="schema", node=node)
    defaults += [{"experiment": None}] if experiments else []
    store.store(name="command", node={"defaults": [*defaults, "_self_"]})
    # Hydra takes every folder in it for a group of configurations, such as ROOT/model.
    folder = experiments.parent if experiments else Path(__file__).parent
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = hydra_compose("command", overrides=overrides)
        assert isinstance(config, DictConfig)
        OmegaConf.set_struct(config, value=False)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            shown = [_shortest(key, aliases) for key in missing]
            docs = [(options.get(key) or options[_with_placeholder(key)]).doc for key in missing]
            raise UsageError(
                f"needs {' '.join(f'{key}=...' for key in shown)}"
                f" ({'; '.join(doc.splitlines()[0] for doc in docs)})"
            )
        for group, kind in chosen.items():
            family, expected = config[group].family, kind().family
            if family != expected:
                raise UsageError(
                    f"{group}.family={family!r} cannot be set, the options are those of "
                    f"{expected!r}; choose with {group}=NAME, in an experiment with defaults: "
                    f"[override /{group}: NAME]"
                )
        composed: Any = OmegaConf.to_object(config)
    except (MissingMandatoryValue, HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        text = str(cause).replace("experiment/given", f"experiment={experiment}")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        keys = [line for line in lines if line.startswith("full_key:")]
        key = keys[0].removeprefix("full_key:").strip() if keys else ""
        where = f"{key}: " if key else ""
        said = " ".join(line for line in lines if not line.startswith(_OF_OMEGACONF))
        unreadable = None if keys else _unreadable(overrides)
        raise UsageError(unreadable or f"{where}{said}") from error
    if hasattr(composed, "given"):
        composed.given = [override.partition("=")[0].lstrip("+") for override in overrides]
    return composed


_OF_OMEGACONF: Final = ("full_key:", "object_type=", "reference_type=", "Set the environment")
"""Begin the lines of its errors that a user cannot use."""


def _unreadable(overrides: Sequence[str]) -> str | None:
    """Return what is wrong with the first override that Hydra's grammar rejects."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for override in overrides:
        try:
            OverridesParser.create().parse_override(override)
        except HydraException:
            key, _, value = override.lstrip("+").partition("=")
            return (
                f"{key}={value!r} cannot be read: a list is [1,2], a table {{a: 1}}, and text with "
                "brackets or commas goes into quotes"
            )
    return None


def grid(schema: type[Any], words: Sequence[str]) -> list[GridPoint]:
    """Return the configuration of every combination of values that ``a=1,2`` and ``b=x,y`` list.

    Values use the syntax of Hydra's sweeps: ``lr=1e-4,3e-4``, ``n=range(1,4)``,
    ``shape=choice(a,b)``. All are composed and validated.

    Raises:
        UsageError: If no key has several values, or as ``compose``.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, listed = OverridesParser.create(), []
    for word in _equals(words):
        key = word.partition("=")[0]
        try:
            override = parser.parse_override(word)
            is_swept = override.is_sweep_override()
            values = list(override.sweep_string_iterator()) if is_swept else None
        except HydraException:  # text that Hydra's grammar rejects is one value
            values = None
        listed.append([word] if values is None else [f"{key}={value}" for value in values])
    swept = [i for i, choices in enumerate(listed) if len(choices) > 1]
    if not swept:
        raise UsageError(
            "--multirun needs a key with several values, for example optim.lr=1e-4,3e-4"
        )
    points = []
    for combination in itertools.product(*listed):
        chosen = dict(combination[i].split("=", 1) for i in swept)
        points.append(GridPoint(chosen=chosen, config=compose(schema, combination)))
    return points


def chosen_groups(schema: type[Any], words: Sequence[str]) -> dict[str, type[Any]]:
    """Return each config group's class: from the arguments, the experiment, or the default.

    Raises:
        UsageError: For a name that is not in the group.
    """
    groups: dict[str, Any] = getattr(schema, "GROUPS", {})
    experiments: Path | None = getattr(schema, "EXPERIMENTS", None)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    found: dict[str, Any] = {}
    for group, classes_of in groups.items():
        classes = classes_of()
        (field,) = (f for f in dataclasses.fields(schema) if f.name == group)
        assert field.default_factory is not dataclasses.MISSING
        found[group] = field.default_factory
        name = given.get(group) or _override_in(experiments, given.get("experiment"), group)
        if name is not None:
            if name not in classes:
                raise UsageError(f"{group}={name!r} is not known; {nearest(name, classes)}")
            found[group] = classes[name]
    return found


def _override_in(experiments: Path | None, name: str | None, group: str) -> str | None:
    """Return the choice of an experiment's defaults list for a config group."""
    if experiments is None or name is None:
        return None
    path = _experiment_path(experiments, name)
    if not path.is_file():
        return None  # an unknown name, which composing refuses
    from omegaconf import OmegaConf

    entries = OmegaConf.to_container(_loaded(path)).get("defaults", [])  # type: ignore[union-attr]
    if not isinstance(entries, list):
        raise UsageError(f"experiment={name!r}: defaults must be a list, got {entries!r}")
    for entry in entries:
        if isinstance(entry, dict) and f"override /{group}" in entry:
            return str(entry[f"override /{group}"])
    return None


def _loaded(path: Path) -> "DictConfig":
    """Return the content of a YAML file.

    Raises:
        UsageError: If it is none, or no table.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"experiment={str(path)!r} is no YAML: {reason}") from error
    if not isinstance(node, DictConfig):
        raise UsageError(
            f"experiment={str(path)!r} must hold keys and values, one KEY: VALUE a line"
        )
    return node


def _experiment_path(experiments: Path, name: str) -> Path:
    """Return the file of ``experiment=NAME``, or of ``experiment=PATH.yaml``.

    Raises:
        UsageError: If there is no such path.
    """
    if not _is_file_name(name):
        return experiments / f"{name}.yaml"
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"experiment={name!r} is no file; a name without .yaml is one of ours")
    return path


def _equals(words: Sequence[str]) -> Iterator[str]:
    """Yield ``--some-key value`` and ``--some-key=value`` as ``some_key=value``."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            yield word
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        following = value if equals else next(rest, None)
        yield key if following is None else f"{key}={following}"


def _override(
    word: str,
    options: dict[str, Option],
    aliases: dict[str, str],
    experiments: Path | None,
    groups: Collection[str],
    habits: Mapping[str, str],
) -> str:
    """Return the Hydra override for one command-line argument."""
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~")
    known = [_shortest(option, aliases) for option in options]
    known += ["experiment"] if experiments else []
    if not equals:
        raise UsageError(f"{word!r} is not key=value; {_near_keys(word.lstrip('-+~'), known)}")
    if key != bare:
        fix = f"write {bare}=..." if bare in {*known, *options} else _near_keys(bare, known)
        raise UsageError(f"options are set without {key[: len(key) - len(bare)]!r}: {fix}")
    for group in groups:
        if bare == f"{group}.family":
            raise UsageError(f"{bare} is chosen with {group}=NAME, which brings its own options")
    if bare == "experiment" and experiments:
        if _is_file_name(value):
            return "experiment=given"
        names = sorted(path.stem for path in experiments.glob("*.yaml"))
        if value not in names:
            raise UsageError(f"unknown experiment {value!r}; {nearest(value, names)}")
        return f"experiment={value}"
    if bare in habits:
        raise UsageError(f"unknown option {bare!r}; {habits[bare]}")
    full = _full_key(bare, options, aliases)
    option = options.get(full) or options.get(_with_placeholder(full))
    if option is None:
        raise UsageError(f"unknown option {bare!r}; {_near_keys(bare, known)}")
    hint = option.type_hint
    choices = _choices(hint)
    if value == "null" and type(None) in typing.get_args(hint):
        written = "null"
    elif _is_text(hint):
        value = os.path.expanduser(value) if value.startswith("~") else value  # noqa: PTH111
        written = f"'{_escape(value)}'"
    elif choices and value not in choices:
        near = closest(value, choices)
        hint = "" if near is None else f"; did you mean {near!r}?"
        raise UsageError(f"{bare} must be one of {', '.join(choices)}, got {value!r}{hint}")
    else:
        written = value
    if full in options:
        is_open = typing.get_origin(hint) is dict  # its keys are chosen by the user
        return f"{'++' if is_open else ''}{full}={written}"
    table, name, leaf = full.rsplit(".", 2)  # merged: the first key creates the entry
    return f"++{table}={{{name}:{{{leaf}:{written}}}}}"


def _full_key(key: str, options: Collection[str], aliases: dict[str, str]) -> str:
    """Expand a short spelling: an alias, also of the first part, or the end of a single key.

    Raises:
        UsageError: If several keys end like it.
    """
    if key in options:
        return key
    if key in aliases:
        return aliases[key]
    first, dot, rest = key.partition(".")
    if dot and first in aliases:
        return f"{aliases[first]}.{rest}"
    ends = [option for option in options if option.endswith(f".{key}")]
    ends = [option for option in ends if PLACEHOLDER not in option] or ends
    if len(ends) > 1:
        raise UsageError(f"{key!r} may be any of {', '.join(sorted(ends))}: write more of the key")
    return ends[0] if ends and PLACEHOLDER not in ends[0] else key


def _near_keys(key: str, known: Sequence[str]) -> str:
    """Return a hint of at most five keys: those whose last part is close, else its group's."""
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        return f"it is a group of options: {', '.join(below[:5])}"
    group, _, last = key.rpartition(".")
    ends = [name.rpartition(".")[2] for name in known]
    close = difflib.get_close_matches(last, dict.fromkeys(ends), n=5, cutoff=0.6)
    near = [name for end in close for name, own in zip(known, ends, strict=True) if own == end]
    near.sort(key=lambda name: group.rpartition(".")[2] not in name.split(".")[:-1])
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near[:5])}?"
    inside = [name for name in known if name.startswith(f"{key.partition('.')[0]}.")]
    return f"choose from: {', '.join(inside[:5])}" if inside else "--help lists the options"


def _is_file_name(experiment: str) -> bool:
    return experiment.endswith((".yaml", ".yml"))


def _with_placeholder(key: str) -> str:
    """Return ``a.NAME.c`` for ``a.b.c``: the key of an option below an entry of a dict."""
    parts = key.split(".")
    return ".".join([*parts[:-2], PLACEHOLDER, parts[-1]])


def _escape(value: str) -> str:
    r"""Quote for Hydra's grammar: only ``\'`` and backslashes before a quote are special."""
    out = ""
    for i, char in enumerate(value):
        if char == "'":
            out += "\\'"
        elif char == "\\" and value[i:].lstrip("\\")[:1] in ("'", ""):
            out += "\\\\"
        else:
            out += char
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", out)


def _is_text(hint: Any) -> bool:
    return hint is str or (type(None) in typing.get_args(hint) and str in typing.get_args(hint))


def _choices(hint: Any) -> list[str]:
    kinds = [hint, *typing.get_args(hint)]
    return [m.name for k in kinds if inspect.isclass(k) and issubclass(k, Enum) for m in k]


def _options(
    schema: type[Any], prefix: str = "", classes: Mapping[str, type[Any]] | None = None
) -> Iterator[Option]:
    """Yield every leaf key of a nested dataclass, with its docstring.

    ``classes``: the classes of fields that are chosen by a config group.
    """
    docs = field_docs(schema)
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if field.metadata.get("omegaconf_ignore"):
            continue
        hint = (classes or {}).get(field.name, hints[field.name])
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _options(hint, f"{prefix}{field.name}.")
            continue
        entry = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None
        if dataclasses.is_dataclass(entry) and isinstance(entry, type):
            yield from _options(entry, f"{prefix}{field.name}.{PLACEHOLDER}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        doc = docs.get(field.name, "")
        yield Option(key=f"{prefix}{field.name}", type_hint=hint, default=default, doc=doc)


def field_docs(schema: type[Any]) -> dict[str, str]:
    """Return the docstring below each field of a dataclass and its bases, read from the source."""
    bases = [base for base in schema.__bases__ if dataclasses.is_dataclass(base)]
    docs = {name: doc for base in bases for name, doc in field_docs(base).items()}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(body, ast.ClassDef)
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[statement.target.id] = inspect.cleandoc(after.value.value)
    return docs


# --- help texts -----------------------------------------------------------------------------------


def _shortest(key: str, aliases: dict[str, str]) -> str:
    for short, full in aliases.items():
        if key == full or key.startswith(f"{full}."):
            return short + key.removeprefix(full)
    return key


def _overview(prog: str, commands: Sequence[Command]) -> str:
    width = max(len(command.name) for command in commands)
    lines = [f"usage: {prog} COMMAND [key=value ...]", "", "commands:"]
    lines += [f"  {c.name:<{width}}  {c.summary}" for c in commands]
    lines += ["", f"{prog} COMMAND --help lists the keys of a command; the end of a key will do,"]
    lines += ["as view.kind for pipeline.view.kind, if no other ends like it."]
    return "\n".join([*lines, "COMMAND --cfg job prints the configuration and ends."])


def _docstring_of_main(module: str) -> str:
    """Read the docstring of a command's ``main`` from its source, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            return ast.get_docstring(node) or ""
    raise AssertionError(f"{module} has no main")


def _help(
    prog: str,
    text: str,
    schema: type[Any],
    classes: Mapping[str, type[Any]],
    *,
    multirun: bool = False,
) -> str:
    lines = [f"usage: {prog} [key=value ...]", "", text, "", "keys:"]
    aliases: dict[str, str] = getattr(schema, "ALIASES", {})
    experiments: Path | None = getattr(schema, "EXPERIMENTS", None)
    if experiments:
        names = ", ".join(sorted(path.stem for path in experiments.glob("*.yaml")))
        lines += [
            "  experiment=NAME",
            f"      Experiment config, overridden by the other keys: {names}.",
        ]
    if multirun:
        lines += [
            "  --multirun",
            "      Run every combination of the keys that list several values, for example",
            f"      {prog} --multirun optim.lr=1e-4,3e-4 model.hidden=512,1024 ...",
        ]
    for group, kind in classes.items():
        names = getattr(schema, "GROUPS")[group]()  # noqa: B009 - not every schema has it
        default = next(name for name, one in names.items() if one is kind)
        lines += [
            f"  {group}={default}",
            f"      One of {', '.join(names)}; the keys {group}.* below are those of {default}:",
            f"      {prog} {group}=NAME --help lists another's.",
        ]
    for option in _options(schema, classes=classes):
        short = _shortest(option.key, aliases)
        default = option.default
        if isinstance(default, Enum):
            default = default.name
        required = default in ("???", dataclasses.MISSING)
        also = "" if short == option.key else f"  ({option.key})"
        lines.append(f"  {short}={'REQUIRED' if required else default}{also}")
        if choices := _choices(option.type_hint):
            lines.append(f"      One of {', '.join(choices)}.")
        lines += [f"      {line}" for line in option.doc.splitlines()]
    return "\n".join(lines)
