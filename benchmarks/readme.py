"""Generate the tables of README.md and docs/ from benchmark rows and from code declarations.

    python -m benchmarks readme

A table stands between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``; a test compares
each one with what is generated here.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.config import ReadmeConfig
from benchmarks.declared import flags_table, loss_table, object_table, store_table
from benchmarks.figures import (
    CPU,
    GPU,
    LOSSES,
    MANO,
    PREPROCESS,
    QUICKSTART,
    STORE,
    STRESS,
    SUMMARY,
    Rows,
    arctic_table,
    comparison_table,
    read_rows,
    table,
    tolerance_table,
)
from pipeline.app.files import replace_file

TABLES: Final[dict[str, Callable[[Rows], str]]] = {
    "summary": lambda rows: comparison_table(SUMMARY, rows),
    "quickstart": lambda rows: tolerance_table(QUICKSTART, rows),
    "cpu": lambda rows: table(CPU, rows),
    "store figures": lambda rows: table(STORE, rows),
    "preprocess": lambda rows: table(PREPROCESS, rows),
    "mano": lambda rows: table(MANO, rows),
    "stress": lambda rows: table(STRESS, rows),
    "gpu": lambda rows: table(GPU, rows),
    "losses": lambda rows: table(LOSSES, rows),
    "arctic": arctic_table,
    "store arrays": lambda _: store_table(),
    "store objects": lambda _: object_table(),
    "store flags": lambda _: flags_table(),
    "loss terms": lambda _: loss_table(),
}
_TABLE: Final = re.compile(r"<!-- generated: ([\w ]+) -->\n(.*?)<!-- end of \1 -->", re.DOTALL)


_CODE: Final = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_UNIT: Final = (
    r"images/s|hands/s|samples/s|[MG]B/s|min\b|minutes|hours|seconds|ms\b|mm\b|%|x\b|times"
)
_FIGURE: Final = re.compile(rf"\d[\d.,]*(?: |-)?(?:{_UNIT}).*")
FRONT: Final = ("README.md", "docs/quickstart.md", "docs/index.md")
"""Pages whose figures all come from rows."""


def main(config: ReadmeConfig) -> int:
    """Write the generated tables of README.md and docs/.

    On the front pages a figure outside of a table is refused: it has no row, and so neither a
    tolerance nor a machine.

    Example:
        python -m benchmarks readme
    """
    rows = read_rows(Path(config.results))
    root = Path(config.root)
    loose = {name: loose_figures((root / name).read_text(encoding="utf-8")) for name in FRONT}
    problems = [f"{name}: {text!r}" for name, found in loose.items() for text in found]
    if problems:
        raise ValueError(
            f"{len(problems)} figures have no row ({'; '.join(problems[:3])}); show them in a "
            "generated table, or leave them out"
        )
    for page in pages(root):
        replace_file(page, filled(page.read_text(encoding="utf-8"), rows).encode())
    return 0


def pages(root: Path) -> list[Path]:
    """Return README.md and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def loose_figures(text: str) -> list[str]:
    """Return the measured numbers of a page that stand outside of generated tables and code."""
    return _FIGURE.findall(_CODE.sub("", _TABLE.sub("", text)))


def filled(text: str, rows: Rows) -> str:
    """Return a page with its marked tables regenerated.

    Raises:
        ValueError: If a marker names an unknown table, or is not closed.
    """
    opened, closed = text.count("<!-- generated: "), len(_TABLE.findall(text))
    if opened != closed:
        raise ValueError(
            f"{opened} tables begin with <!-- generated: NAME -->, {closed} end with "
            "<!-- end of NAME -->; give each its own"
        )

    def write(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"no table is named {name!r}; there are {', '.join(TABLES)}")
        return f"<!-- generated: {name} -->\n\n{TABLES[name](rows)}\n<!-- end of {name} -->"

    return _TABLE.sub(write, text)
