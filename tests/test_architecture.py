"""Imports point downwards and never in a circle; package roots are empty."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = ("pipeline", "preprocess", "model", "train", "benchmarks")
OURS = (*PRODUCT, "tests")
JOINED = ["from pipeline.app.siblings import join_model", "join_model()"]
# package -> what it may import of ours, longest prefix decides
ALLOWED = {
    "model": ("model",),
    "pipeline": ("pipeline", "model.fields", "model.geometry", "model.hand", "model.records"),
    "preprocess": (
        "preprocess",
        "pipeline.store",
        "pipeline.app",
        "pipeline.npy",
        "pipeline.pickles",
        "pipeline.zips",
        "model.fields",
        "model.geometry",
        "model.hand",
        "model.records",
        "model.mano.files",
        "model.mano.convert",
        "model.draw",
    ),
    "train": ("train", "pipeline", "model"),
}


def imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(package: str, source: str) -> list[str]:
    allowed = ALLOWED[package]
    return [
        name
        for name in imports(source)
        if name.split(".")[0] in OURS
        and not any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)
    ]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_downwards(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        bad = violations(package, path.read_text())
        assert not bad, f"{path.relative_to(ROOT)} must not import {bad}"


def test_the_check_sees_a_wrong_direction() -> None:
    assert violations("model", "from pipeline.decode.graph import decode") == [
        "pipeline.decode.graph.decode"
    ]
    assert violations("preprocess", "import train.loop") == ["train.loop"]
    assert violations("train", "def f():\n    from preprocess.builder import plan") == [
        "preprocess.builder.plan"
    ]
    assert violations("pipeline", "from model.mano.layer import ManoLayer") == [
        "model.mano.layer.ManoLayer"
    ]
    assert not violations("pipeline", "from model.hand import ROOT\nimport torch")


@pytest.mark.parametrize("package", OURS)
def test_package_roots_hold_a_docstring_only(package: str) -> None:
    for path in sorted((ROOT / package).rglob("__init__.py")):
        docstring, *others = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), path
        # The one exception makes the package usable beside another ``model``; see the module.
        is_joined = path == ROOT / "pipeline" / "__init__.py"
        assert [ast.unparse(node) for node in others] == (JOINED if is_joined else []), path


@pytest.mark.parametrize("package", ["preprocess", "pipeline", "train", "benchmarks"])
def test_front_doors_import_nothing_heavy(package: str) -> None:
    for module in (ROOT / package / "__main__.py", ROOT / "pipeline" / "app" / "cli.py"):
        top = ast.parse(module.read_text())
        top.body = [node for node in top.body if not isinstance(node, ast.FunctionDef)]
        heavy = [n for n in imports(ast.unparse(top)) if n.split(".")[0] in ("torch", "numpy")]
        assert not heavy


# --- circles --------------------------------------------------------------------------------------


def module_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the modules that each module imports, inside functions too.

    Args:
        sources: Source text by the module's dotted name; nothing else is part of the graph.
    """
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        names = {name if name in sources else name.rpartition(".")[0] for name in imports(source)}
        graph[module] = {name for name in names if name in sources}
    return graph


def sibling_graph(modules: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Return what the imports mean for folders: edges between children of the same folder.

    ``a.b.c`` importing ``a.d.e`` makes ``a.b`` depend on ``a.d``.
    """
    graph: dict[str, set[str]] = defaultdict(set)
    for module, targets in modules.items():
        for target in targets:
            here, there = module.split("."), target.split(".")
            for depth, (mine, other) in enumerate(zip(here, there, strict=False), start=1):
                if mine != other:
                    graph[".".join(here[:depth])].add(".".join(there[:depth]))
                    break
    return graph


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the nodes of one circle, the first one again at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]  # graphlib lists what is imported before what imports it
    return []


def product() -> dict[str, str]:
    """Return the source of every module of the product by its dotted name."""
    sources = {}
    for path in sorted(path for package in PRODUCT for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return sources


def test_no_imports_go_in_a_circle() -> None:
    modules = module_graph(product())
    assert not circle(modules)
    assert not circle(sibling_graph(modules))


def test_no_worker_of_a_build_loads_torch() -> None:
    """It takes seconds to start and half a gigabyte of memory."""
    sources = product()
    graph = module_graph(sources)
    reached, left = set[str](), [module for module in sources if module.startswith("preprocess.")]
    while left:
        module = left.pop()
        if module not in reached:
            reached.add(module)
            left += graph[module]
    assert "model.mano.files" in reached
    heavy = [m for m in reached if any(n.split(".")[0] == "torch" for n in imports(sources[m]))]
    assert not heavy


@pytest.mark.parametrize(
    ("sources", "modules", "folders"),
    [
        pytest.param(
            {"a.one": "from a import two", "a.two": "def f():\n    import a.one"},
            {"a.one", "a.two"},
            {"a.one", "a.two"},
            id="two modules, one of them inside a function",
        ),
        pytest.param(
            {
                "a.b.one": "from a.c.two import f",
                "a.c.two": "",
                "a.c.three": "from a.d.four import f",
                "a.d.four": "from a.b.five import f",
                "a.b.five": "import os",
            },
            set(),
            {"a.b", "a.c", "a.d"},
            id="three folders, no module twice",
        ),
        pytest.param(
            {"a.one": "from b.c import two", "b.c.two": "from a import three", "a.three": ""},
            set(),
            {"a", "b"},
            id="two packages",
        ),
        pytest.param(
            {"a": "from a.b import one", "a.b.one": "from a.c.two import f", "a.c.two": "import a"},
            {"a", "a.b.one", "a.c.two"},
            set(),
            id="through the root of a package",
        ),
        pytest.param(
            {"a.b.one": "from a.b import two", "a.b.two": "from a.c import g", "a.c": "import os"},
            set(),
            set(),
            id="none",
        ),
    ],
)
def test_the_check_sees_a_planted_circle(
    sources: dict[str, str], modules: set[str], folders: set[str]
) -> None:
    graph = module_graph(sources)
    assert set(circle(graph)) == modules
    assert set(circle(sibling_graph(graph))) == folders


def test_a_circle_is_shown_in_the_order_of_its_imports() -> None:
    first, *rest = circle({"a": ["b"], "b": ["c"], "c": ["a"]})
    assert rest[-1] == first
    assert "".join([first, *rest]) in ("abca", "bcab", "cabc")
