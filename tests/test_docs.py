"""The documentation is true: README.md and docs/ name only what is there, as it is spelled.

``make docs`` checks the site itself; here nothing is built and no process is started.
"""

import ast
import contextlib
import io
import re
import shlex
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import train.run
from benchmarks.__main__ import COMMANDS as BENCHMARKS
from model.families import FAMILIES
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.app.cli import Command, UsageError, compose, front_door, grid
from pipeline.config import PipelineConfig
from preprocess.__main__ import COMMANDS as PREPROCESS
from preprocess.sources.registry import DATASETS
from tests.conftest import SampleStore
from tests.train.test_run import config as tiny_run
from train.__main__ import COMMANDS as TRAIN
from train.config import Protocol, RunConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
LOADER_PAGES = (ROOT / "README.md", DOCS / "loader.md")
PACKAGES = {
    "preprocess": PREPROCESS,
    "pipeline": PIPELINE,
    "train": TRAIN,
    "benchmarks": BENCHMARKS,
}
SHELL = (".", "export")
"""Words of the shell that a command block may begin a line with."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"\[[^\]]*\]\[([\w.]+)\]")
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
KEY = re.compile(r"(?<!\S)([A-Za-z_][\w.]*)=(\{[^}]*\}|\S*)")
PATH = re.compile(r"^[\w.]+(/[\w.]+)*(\.(py|yaml|c|toml|txt|md|jpg)|/)$")
PLACEHOLDER = re.compile(r"\.\.\.|\b[A-Z]{3,}\b")
"""A value that stands for the reader's own."""
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# --- commands and keys ----------------------------------------------------------------------------


@cache
def schema_of(command: Command) -> type[Any]:
    module, _, name = command.config.partition(":")
    schema: type[Any] = getattr(import_module(module), name)
    return schema


@cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def problem_of(schema: type[Any], words: list[str]) -> str | None:
    """What the CLI says about the words of a command."""
    try:
        if "--multirun" in words:
            grid(schema, [word for word in words if word != "--multirun"])
        else:
            compose(schema, words)
    except ValueError as error:  # also of the schema's own checks
        return str(error)
    return None


def command_problem(line: str, *, whole: bool = True) -> str | None:
    """What is wrong with a line of the shell; None if it would be run as it stands.

    ``whole`` False looks at the name of the command only.
    """
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words or words[0] in SHELL:
        return None
    if words[0] == "make":
        unknown = set(words[1:]) - targets()
        return f"no target {unknown}" if unknown or len(words) == 1 else None
    if words[0] not in ("python", "torchrun") or "-m" not in words:
        return f"{words[0]!r} is not a command of ours"
    package, name, *rest = [*words[words.index("-m") + 1 :], "", ""][: len(words)]
    commands = {command.name: command for command in PACKAGES.get(package, ())}
    if not commands:
        return f"no package {package!r}"
    if name in ("--help", "COMMAND"):
        return None
    if name not in commands:
        return f"no command {name!r} of {package}"
    given = [word for word in rest if word]
    if not whole or "--help" in given:
        return None
    return problem_of(schema_of(commands[name]), given)


@cache
def keys_of(package: str, command: str) -> frozenset[str]:
    """Every key that the help of a command lists, short and long."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        front_door(f"python -m {package}", PACKAGES[package], [command, "--help"])
    lines = re.findall(r"^  ([\w.]+)=.*?(?:  \(([\w.]+)\))?$", out.getvalue(), re.MULTILINE)
    return frozenset(key for pair in lines for key in pair if key)


@cache
def schemas_by_key() -> dict[str, type[Any]]:
    """The first schema that has a key: a training run's, another command's, or the loader's."""
    found: dict[str, type[Any]] = {}
    commands = [(package, command) for package in PACKAGES for command in PACKAGES[package]]
    for package, command in sorted(commands, key=lambda pair: pair[1].name != "run"):
        for key in keys_of(package, command.name):
            found.setdefault(key, schema_of(command))
    for key in keys_of("train", "run"):
        found.setdefault(key.removeprefix("pipeline."), PipelineConfig)
    return found


def option_problems(pairs: set[tuple[str, str]]) -> list[str]:
    """What is wrong with options that are named in passing; any command may have them."""
    schemas = schemas_by_key()
    problems, literal = [], defaultdict[type[Any], list[tuple[str, str]]](list)
    for key, value in sorted(pairs):
        parts = key.split(".")
        schema = schemas.get(key) or schemas.get(".".join([*parts[:-2], "NAME", parts[-1]]))
        if schema is None:
            problems.append(f"no command takes {key}={value}")
        elif not PLACEHOLDER.search(f"{key}={value}") and value:
            literal[schema].append((key, value))
    for schema, options in literal.items():
        by_key: dict[str, list[str]] = {}
        for key, value in options:
            by_key.setdefault(key, []).append(value)
        for number in range(max(len(values) for values in by_key.values())):
            words = [f"{k}={v[number]}" for k, v in by_key.items() if number < len(v)]
            try:
                compose(schema, words)
            except UsageError as error:
                if not str(error).startswith("needs "):
                    problems.append(str(error))
            except ValueError:
                continue  # the schema misses the rest of the command
    return problems


@pages
def test_every_command_is_one_that_the_cli_takes(page: Path) -> None:
    blocks = fences(page.read_text(encoding="utf-8"), "bash")
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    problems = {line: command_problem(line) for line in lines}
    spans = [s for s in INLINE.findall(prose(page)) if re.match(r"python -m \w|make \w", s)]
    problems |= {span: command_problem(span, whole=False) for span in spans}
    assert not {line: problem for line, problem in problems.items() if problem}


@pages
def test_every_option_in_the_text_exists(page: Path) -> None:
    spans = [span for span in INLINE.findall(prose(page)) if "(" not in span and " = " not in span]
    pairs = {pair for span in spans for pair in KEY.findall(span) if not pair[0].isupper()}
    assert not option_problems(pairs - {("key", ""), ("key", "value")})


@pytest.mark.parametrize(
    "line",
    [
        "python -m train run store=s stepz=3",
        "python -m train run steps=3",  # no store
        "python -m train run store=s steps=many",
        "torchrun --nproc-per-node 8 -m train run experiment=nothere store=s",
        "python -m preprocess build",
        "python -m postprocess",
        "make breakfast",
        "make",
        "pip install handloom",
        "python -m train evaluate run=r store=s protocol=dexycbs",
    ],
)
def test_a_wrong_command_is_seen(line: str) -> None:
    assert command_problem(line)


def test_a_wrong_option_is_seen() -> None:
    right = {("steps", "3"), ("view.kind", "frame"), ("store", "x"), ("stages.head.lr", "1e-3")}
    assert not option_problems(right)
    for wrong in (
        ("model.heads", "mano"),
        ("model.head", "mesh"),
        ("pipeline.cache.size", "NUMBER"),
        ("steps", "many"),
        ("view.kind", "both"),
    ):
        assert len(option_problems({wrong})) == 1, wrong


# --- names ----------------------------------------------------------------------------------------


def exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something at the top of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        source = (
            path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        )
        if source.is_file():
            return count == len(parts) or (
                count == len(parts) - 1 and parts[-1] in set(defined(source))
            )
    return False


def defined(source: Path) -> Iterator[str]:
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def documented() -> set[str]:
    return {name for page in PAGES for name in DIRECTIVE.findall(page.read_text(encoding="utf-8"))}


def test_the_api_pages_name_what_is_there() -> None:
    assert documented()
    assert not [name for name in sorted(documented()) if not exists(name)]
    assert not exists("pipeline.loader.Nothing")
    assert not exists("pipeline.nothing.Loader")


@pages
def test_references_lead_to_the_api_pages(page: Path) -> None:
    assert set(REFERENCE.findall(prose(page))) <= documented()


@pages
def test_every_file_that_is_named_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    words = [word for span in INLINE.findall(prose(page)) for word in span.split()]
    words += [word for block in fences(text, "text") for word in block.replace(",", " ").split()]
    folders = (*PACKAGES, "model", "tests", "docs")
    ours = [
        word
        for word in words
        if PATH.fullmatch(word) and (word.endswith(".py") or word.split("/")[0] in folders)
    ]
    roots = (ROOT, *(ROOT / folder for folder in folders))
    missing = [word for word in ours if not any((root / word).exists() for root in roots)]
    assert not [word for word in missing if word not in ("train.py", "model/")]  # the reader's own


@pages
def test_python_blocks_import_what_is_there(page: Path) -> None:
    for block in fences(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
                assert all(exists(f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("datasets.md", DATASETS),
        ("training.md", sorted(path.stem for path in RunConfig.EXPERIMENTS.glob("*.yaml"))),
        ("models.md", list(FAMILIES)),
        ("evaluation.md", [protocol.name for protocol in Protocol]),
        ("quickstart.md", [command.name for commands in PACKAGES.values() for command in commands]),
    ],
)
def test_nothing_is_left_out(page: str, names: list[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert not [name for name in names if f"`{name}`" not in text]


# --- links and layout -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.replace("`", "")) for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading.strip().lower()) for heading in plain}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link
        assert page.parent == ROOT or DOCS in path.resolve().parents, f"{link} leaves the site"


def test_the_site_shows_every_page_once() -> None:
    def listed(entry: Any) -> Iterator[str]:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else [p for e in value for p in listed(e)]

    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    shown = [page for entry in site["nav"] for page in listed(entry)]
    assert sorted(shown) == sorted(str(page.relative_to(DOCS)) for page in PAGES[1:])


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
    assert (DOCS / "images" / "sample.jpg").stat().st_size < 250_000


class EnoughError(Exception):
    """The first batch has arrived."""


def test_the_loader_alone_runs_as_shown(freihand: SampleStore) -> None:
    blocks = [fences(page.read_text(encoding="utf-8"), "python") for page in LOADER_PAGES]
    block, same = (found[0] for found in blocks)
    assert ast.dump(ast.parse(block)) == ast.dump(ast.parse(same))
    code = block.replace("/fast/freihand.zarr", str(freihand.store)).replace('"cuda"', '"cpu"')
    assert code.count(str(freihand.store)) == 1

    def my_loss(prediction: torch.Tensor, joints: torch.Tensor, valid: torch.Tensor) -> None:
        assert prediction.shape[1:] == (3, 224, 224)
        assert joints[valid].isfinite().all()
        raise EnoughError

    names = {"my_model": lambda image: image, "my_loss": my_loss}
    with pytest.raises(EnoughError):
        exec(code, names)
    for page_blocks in blocks:
        for other in page_blocks[1:]:
            exec(other, names)


def test_the_python_page_runs_as_shown(
    freihand: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.run.main(tiny_run(freihand, tmp_path / "runs" / "first", "steps=1")) == 0
    photo = next((freihand.root / "training" / "rgb").iterdir())
    shutil.copy(photo, tmp_path / "photo.jpg")
    asked: list[RunConfig] = []
    monkeypatch.setattr(train.run, "main", asked.append)
    names: dict[str, Any] = {}
    for block in fences((DOCS / "python.md").read_text(encoding="utf-8"), "python"):
        exec(block.replace('"cuda"', '"cpu"'), names)
    assert [config.run_dir for config in asked] == ["runs/first"]
    assert names["error_m"].isfinite().all()
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "left (21, 3) (21, 2)", "right (21, 3) (21, 2)",
    ]  # fmt: skip
