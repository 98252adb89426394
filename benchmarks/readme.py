"""The README's tables of figures, written from the rows in benchmarks/results.

    python -m benchmarks readme

A figure without a row reads "not yet measured"; a test holds that README and rows agree.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.config import ReadmeConfig

NOT_MEASURED: Final = "not yet measured"
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One line of a table: the newest row that fits, in words."""

    what: str
    bench: str
    variant: str
    metric: str
    text: str = "{p50:,.0f} {unit}"
    """How the row reads; its keys and those of its ``params``."""
    aim: str = ""

    def value(self, rows: Rows) -> str:
        """Return the newest row's text, or that there is none."""
        found = [
            row
            for row in rows
            if (row["bench"], row["metric"]) == (self.bench, self.metric)
            and re.fullmatch(self.variant, row["variant"])
        ]
        if not found:
            return NOT_MEASURED
        newest = max(found, key=lambda row: (row["date"], row["p50"]))
        return self.text.format(**(newest["params"] | newest))


LOADER: Final = (
    ("uint8", r"ours, resident Loader", "frames as they are, resident"),
    ("uint8", r"limit: index_select\(out=\)", "... a plain copy of the same rows"),
    ("uint8", r"ours, stream Loader", "frames decoded again in every epoch"),
    ("uint8", r"limit: bare DALI decode", "... DALI alone on the same bytes"),
    ("uint8", r"DataLoader, simplejpeg", "PyTorch DataLoader, simplejpeg"),
    ("uint8", r"WebDataset, simplejpeg", "WebDataset, simplejpeg"),
    ("uint8", r"SPDL, simplejpeg", "SPDL, simplejpeg"),
    ("train", r"ours, resident Loader", "warped, recoloured, normalised to 224 px, resident"),
    ("train", r"DataLoader, cv2", "... PyTorch DataLoader, cv2"),
    ("train", r"DataLoader, simplejpeg", "... PyTorch DataLoader, simplejpeg"),
    ("train", r"WebDataset, simplejpeg", "... WebDataset, simplejpeg"),
    ("train", r"SPDL, simplejpeg", "... SPDL, simplejpeg"),
)
CPU: Final = (
    *(
        Figure(what=what, bench="loader", variant=variant, metric=metric)
        for metric, variant, what in LOADER
    ),
    Figure(
        what="share of a 100 ms step that a busy consumer waits, resident / DataLoader",
        bench="loader",
        variant="ours, resident Loader",
        metric="busy uint8, waiting",
        text="{p50:.2f} %",
    ),
    Figure(
        what="... PyTorch DataLoader, simplejpeg",
        bench="loader",
        variant="DataLoader, simplejpeg",
        metric="busy uint8, waiting",
        text="{p50:.2f} %",
    ),
)
LOSSES: Final = (
    *(
        Figure(
            what=f"launches of a forward and backward, {name}",
            bench="losses",
            variant=re.escape(name),
            metric="launches",
            text="{p50:.0f}",
            aim=aim,
        )
        for name, aim in (("eager", ""), ("torch.compile", ""), ("Triton", ""))
    ),
    *(
        Figure(
            what=f"time on a GPU: Triton against {name}, B = 256",
            bench="gpu",
            variant=rf"Triton against {re.escape(name)}, B = 256",
            metric="of its rate",
            text="{p50:.1f} x",
            aim=aim,
        )
        for name, aim in (("eager", "8 x"), ("torch.compile", "1.5 x"))
    ),
)
GPU: Final = (
    Figure(
        what="fill: decode to the cache, best share of the JPEG engines",
        bench="gpu",
        variant="fill",
        metric="of a bare decode",
        text="{p50:.0f} % of a bare DALI decode",
        aim="85 %",
    ),
    Figure(
        what="loader: order, augmentation, labels, gather; B = 256, 224 px bf16",
        bench="gpu",
        variant="loader, resident",
        metric="batches with labels",
        aim="350 k images/s",
    ),
    Figure(
        what="... as a share of a ResNet-50 training step",
        bench="gpu",
        variant="loader, resident",
        metric="of a step",
        text="{p50:.2f} %",
        aim="at most 1 %",
    ),
    Figure(
        what="gather alone, rgb",
        bench="gpu",
        variant="gather rgb",
        metric="of the copy's bandwidth",
        text="{p50:.0f} % of a device copy's bandwidth",
        aim="60 %",
    ),
    Figure(
        what="stream: decoded in every epoch",
        bench="gpu",
        variant="stream",
        metric="of a bare decode",
        text="{p50:.0f} % of a bare DALI decode",
        aim="85 %",
    ),
    *(
        Figure(
            what=f"`{recipe}`: {what}",
            bench="gpu",
            variant=f"{recipe}, loop",
            metric=metric,
            text=text,
            aim=aim,
        )
        for recipe in ("freihand_resnet50", "freihand_vits", "arctic_baseline")
        for what, metric, text, aim in (
            ("training", "samples_per_s", "{p50:,.0f} samples/s", ""),
            (
                "of the ceiling, one batch again and again",
                "of the cached batch's ceiling",
                "{p50:.1f} %",
                "99 %",
            ),
            ("share of the time waiting for data", "data_share", "{p50:.2%}", "under 0.5 %"),
            ("NVML utilisation", "gpu_util", "{p50:.0%}", "97 %"),
        )
    ),
    Figure(
        what="ResNet-50 fed by a 16-worker DataLoader (cv2)",
        bench="gpu",
        variant=r"DataLoader, cv2, \d+ workers, resnet50",
        metric="training",
        text="{p50:,.0f} samples/s",
    ),
    Figure(
        what="ViT-L step beside 400,000 frames of 256 px",
        bench="gpu",
        variant=r"vit_large.* beside 400,000 frames",
        metric="peak memory",
        text="{p50:.0f} GB peak, {cache_gb} GB of it the cache",
        aim="fits",
    ),
)


def main(config: ReadmeConfig) -> int:
    """Write the README's tables from the rows.

    Example:
        python -m benchmarks readme
    """
    path = Path(config.path)
    path.write_text(filled(path.read_text(encoding="utf-8"), read_rows(Path(config.results))))
    return 0


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return every row of every file of a folder."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def filled(text: str, rows: Rows) -> str:
    """Return a README with its marked tables written anew.

    Raises:
        ValueError: If a marker is missing.
    """
    for name, figures in {"cpu": CPU, "gpu": GPU, "losses": LOSSES}.items():
        begin, end = f"<!-- figures {name} -->\n", f"<!-- end of figures {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"the README has no lines {begin.strip()!r} and {end!r}")
        before, _, rest = text.partition(begin)
        text = before + begin + table(figures, rows) + end + rest.partition(end)[2]
    return text


def table(figures: Sequence[Figure], rows: Rows) -> str:
    """Return a table in Markdown."""
    has_aim = any(figure.aim for figure in figures)
    head = ["| what | measured |" + " aim |" * has_aim, "|---|---|" + "---|" * has_aim]
    lines = [
        f"| {figure.what} | {figure.value(rows)} |" + f" {figure.aim} |" * has_aim
        for figure in figures
    ]
    return "\n".join([*head, *lines]) + "\n"
