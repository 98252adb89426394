"""Imports point downwards; package roots are empty."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("pipeline", "preprocess", "model", "train", "benchmarks", "tests")
JOINED = ["from pipeline.app.siblings import join_model", "join_model()"]
# package -> what it may import of ours, longest prefix decides
ALLOWED = {
    "model": ("model",),
    "pipeline": ("pipeline", "model.geometry", "model.hand"),
    "preprocess": (
        "preprocess",
        "pipeline.store",
        "pipeline.app.cli",
        "pipeline.npy",
        "pipeline.pickles",
        "pipeline.zips",
        "model.geometry",
        "model.hand",
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
