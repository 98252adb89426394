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
    STORE,
    STRESS,
    SUMMARY,
    Rows,
    arctic_table,
    comparison_table,
    read_rows,
    table,
)
from pipeline.app.files import replace_file

TABLES: Final[dict[str, Callable[[Rows], str]]] = {
    "summary": lambda rows: comparison_table(SUMMARY, rows),
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


def main(config: ReadmeConfig) -> int:
    """Write the generated tables of README.md and docs/.

    Example:
        python -m benchmarks readme
    """
    rows = read_rows(Path(config.results))
    for page in pages(Path(config.root)):
        replace_file(page, filled(page.read_text(encoding="utf-8"), rows).encode())
    return 0


def pages(root: Path) -> list[Path]:
    """Return README.md and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


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
