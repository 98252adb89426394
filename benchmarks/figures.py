"""Figures shown in README.md and docs/: the result row behind each one and its format.

A figure is the newest matching row of benchmarks/results; without one it reads "not yet measured".
Where the newest is of one run and others on its machine had other seeds, it is the median of them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NOT_MEASURED: Final = "not yet measured"
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One line of a table: the newest matching row, formatted as text."""

    what: str
    bench: str
    variant: str
    """Regular expression that must match a row's whole ``variant``."""
    metric: str
    text: str = "{p50:,.0f} {unit}"
    """Format string of the row; fields are its keys and those of its ``params``."""
    aim: str = ""
    is_exact: bool = False
    """A count that is the same on every machine."""

    def value(self, rows: Rows) -> str:
        """Return the row as text, or ``NOT_MEASURED``."""
        row = self.row(rows)
        return NOT_MEASURED if row is None else self.text.format(**(row["params"] | row))

    def row(self, rows: Rows) -> dict[str, Any] | None:
        """Return the newest matching row; of runs with several seeds the median one."""
        seeds = self._seeds(rows)
        return seeds[(len(seeds) - 1) // 2] if seeds else None

    def _seeds(self, rows: Rows) -> list[dict[str, Any]]:
        """Return the newest row of every seed, from small to large; or the newest row."""
        found = [
            row
            for row in rows
            if (row["bench"], row["metric"]) == (self.bench, self.metric)
            and re.fullmatch(self.variant, row["variant"])
        ]
        found.sort(key=lambda row: (row["date"], row["p50"]))
        if not found or found[-1]["n"] != 1 or "seed" not in found[-1]["params"]:
            return found[-1:]
        by_seed = {
            row["params"]["seed"]: row
            for row in found
            if row["n"] == 1 and "seed" in row["params"] and _machine(row) == _machine(found[-1])
        }
        return sorted(by_seed.values(), key=lambda row: float(row["p50"]))

    def tolerance(self, rows: Rows) -> str:
        """Return half the range between the 20 % and 80 % quantiles, or the seeds, in words.

        Raises:
            ValueError: If there is no row.
        """
        row = self.row(rows)
        if row is None:
            raise ValueError(f"{self.what!r} has no row in benchmarks/results")
        if self.is_exact:
            return "exact"
        seeds, over = self._seeds(rows), ""
        low, high = row["p20"], row["p80"]
        if len(seeds) > 1:
            low, high = seeds[0]["p50"], seeds[-1]["p50"]
            over = f", {len(seeds)} seeds"
        elif row["n"] == 1:
            return "one run"
        share = (high - low) / 2 / abs(row["p50"])
        return (f"± {100 * share:.0f} %" if share >= 0.005 else "under 0.5 %") + over


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One line of the front page: a figure of ours and those it is compared with."""

    ours: Figure
    beside: tuple[Figure, ...]


def table(figures: Sequence[Figure], rows: Rows) -> str:
    """Return a table in Markdown."""
    has_aim = any(figure.aim for figure in figures)
    head = ["| what | measured |" + " aim |" * has_aim, "|---|---|" + "---|" * has_aim]
    lines = [
        f"| {figure.what} | {figure.value(rows)} |" + f" {figure.aim} |" * has_aim
        for figure in figures
    ]
    return "\n".join([*head, *lines]) + "\n"


def comparison_table(lines: Sequence[Comparison], rows: Rows) -> str:
    """Return a Markdown table of measured figures only.

    Raises:
        ValueError: If a figure has no row.
    """
    text = ["| what | Handloom | tolerance | measured beside it |", "|---|---|---|---|"]
    machines: list[str] = []
    for line in lines:
        figures = (line.ours, *line.beside)
        values = [figure.value(rows) for figure in figures]
        found = [row for figure in figures if (row := figure.row(rows)) is not None]
        if len(found) < len(figures):
            raise ValueError(f"{line.ours.what!r} has no row in benchmarks/results")
        used = {_machine(row) for row in found}
        if len(used) > 1:
            raise ValueError(
                f"{line.ours.what!r} compares rows of several machines "
                f"({', '.join(sorted(used))}); measure them together"
            )
        machines += used
        names = [
            f"{figure.what} {value}".strip()
            for figure, value in zip(line.beside, values[1:], strict=True)
        ]
        tolerance = line.ours.tolerance(rows)
        text.append(f"| {line.ours.what} | {values[0]} | {tolerance} | {'; '.join(names)} |")
    return "\n".join(text) + f"\n\n{_measured_on(machines)}\n"


def tolerance_table(figures: Sequence[Figure], rows: Rows) -> str:
    """Return a Markdown table of measured figures with tolerance and machine.

    Raises:
        ValueError: If a figure has no row.
    """
    text = ["| what | measured | tolerance |", "|---|---|---|"]
    text += [f"| {one.what} | {one.value(rows)} | {one.tolerance(rows)} |" for one in figures]
    machines = [_machine(row) for one in figures if (row := one.row(rows)) is not None]
    return "\n".join(text) + f"\n\n{_measured_on(machines)}\n"


def _machine(row: dict[str, Any]) -> str:
    """Return the machine of a row in words."""
    machine = row["machine"]
    cpu = re.sub(r"\((R|TM)\)| Processor| CPU", "", machine["cpu"]).strip()
    return machine["gpu"] or f"{machine['cores']} cores of an {cpu}"


def _measured_on(machines: Sequence[str]) -> str:
    return (
        f"Measured on {' and '.join(dict.fromkeys(machines))}. The tolerance is half the range "
        "between the 20 % and 80 % quantiles of the repeats, or between the extremes of the seeds."
    )


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return every row of every file of a folder."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _loader(variant: str, what: str, metric: str = "uint8", text: str = "{p50:,.0f}") -> Figure:
    return Figure(what=what, bench="loader", variant=variant, metric=metric, text=text)


_PER_S: Final = "{p50:,.0f} images/s"
_PEERS: Final = (
    ("SPDL, simplejpeg", "SPDL"),
    ("WebDataset, simplejpeg", "WebDataset"),
    ("DataLoader, simplejpeg", "PyTorch DataLoader"),
)

# --- the front page -------------------------------------------------------------------------------

SUMMARY: Final = (
    Comparison(
        ours=_loader(
            "ours, resident Loader", "frames held in memory, uint8 (the others decode)", text=_PER_S
        ),
        beside=tuple(_loader(variant, name) for variant, name in _PEERS),
    ),
    Comparison(
        ours=_loader("ours, stream Loader", "frames decoded again every epoch", text=_PER_S),
        beside=(_loader("limit: bare DALI decode", "DALI alone"),),
    ),
    Comparison(
        ours=_loader(
            "ours, resident Loader",
            "training inputs: warped, recoloured, normalised, 224 px",
            metric="train",
            text=_PER_S,
        ),
        beside=tuple(_loader(variant, name, metric="train") for variant, name in _PEERS),
    ),
    Comparison(
        ours=Figure(
            what="random JPEGs out of the store, one core, checksums verified",
            bench="store",
            variant="mmap, crc32c checked",
            metric="random images",
        ),
        beside=tuple(
            Figure(what=what, bench="store", variant=v, metric="random images", text="{p50:,.0f}")
            for what, v in (
                ("tensorstore", "tensorstore, 64 futures"),
                ("zarr-python", "zarr-python, slices"),
            )
        ),
    ),
    Comparison(
        ours=Figure(
            what="MANO layer, both hands, forward and backward, compiled",
            bench="mano",
            variant="ours",
            metric="both sides, compiled",
        ),
        beside=(
            Figure(
                what="smplx",
                bench="mano",
                variant="smplx",
                metric="both sides, compiled",
                text="{p50:,.0f}",
            ),
        ),
    ),
    Comparison(
        ours=Figure(
            what="kernel launches of all losses, forward and backward",
            bench="losses",
            variant="Triton",
            metric="launches",
            text="{p50:.0f}",
            is_exact=True,
        ),
        beside=tuple(
            Figure(what=v, bench="losses", variant=v, metric="launches", text="{p50:.0f}")
            for v in ("torch.compile", "eager")
        ),
    ),
    Comparison(
        ours=Figure(
            what="a build that is killed and continued",
            bench="soak",
            variant="build dexycb",
            metric="kills survived",
            text="{p50:.0f} kills",
            is_exact=True,
        ),
        beside=(
            Figure(
                what="",
                bench="soak",
                variant="build dexycb",
                metric="kills survived",
                text="all {files_equal:,} files equal to an undisturbed build's",
            ),
        ),
    ),
    Comparison(
        ours=Figure(
            what="training from scratch on synthetic hands: held-out PA-MPJPE",
            bench="soak",
            variant="experiment=soak",
            metric="PA-MPJPE over the mean pose's",
            text="{pa_mpjpe_mm:.1f} mm after {minutes:.0f} min",
        ),
        beside=(
            Figure(
                what="mean pose",
                bench="soak",
                variant="experiment=soak",
                metric="PA-MPJPE over the mean pose's",
                text="{mean_pose_pa_mpjpe_mm:.1f} mm",
            ),
            Figure(
                what="shuffled labels",
                bench="soak",
                variant="experiment=soak, shuffled labels",
                metric="PA-MPJPE over the mean pose's",
                text="{pa_mpjpe_mm:.1f} mm",
            ),
        ),
    ),
)

# --- docs/quickstart.md ---------------------------------------------------------------------------


def _quickstart(
    what: str, variant: str, metric: str = "PA-MPJPE", text: str = "{p50:.1f} {unit}"
) -> Figure:
    return Figure(what=what, bench="quickstart", variant=variant, metric=metric, text=text)


QUICKSTART: Final = (
    _quickstart(
        "`make quickstart`, after the set-up",
        "make quickstart",
        "time",
        "{p50:.0f} min",
    ),
    _quickstart("PA-MPJPE on the 300 held-out images", "model"),
    _quickstart("... the untrained network", "untrained"),
    _quickstart("... the mean pose of the training set", "mean_pose"),
)

# --- docs/benchmarks.md ---------------------------------------------------------------------------

CPU: Final = (
    *(
        _loader(variant, what, metric=metric, text=_PER_S)
        for metric, variant, what in (
            ("uint8", r"ours, resident Loader", "frames as they are, resident"),
            ("uint8", r"limit: index_select\(out=\)", "... a plain copy of the same rows"),
            ("uint8", r"ours, stream Loader", "frames decoded again in every epoch"),
            ("uint8", r"limit: bare DALI decode", "... DALI alone on the same bytes"),
            ("uint8", r"DataLoader, simplejpeg", "... PyTorch DataLoader, simplejpeg"),
            ("uint8", r"WebDataset, simplejpeg", "... WebDataset, simplejpeg"),
            ("uint8", r"SPDL, simplejpeg", "... SPDL, simplejpeg"),
            ("train", r"ours, resident Loader", "warped, recoloured, normalised to 224 px"),
            ("train", r"DataLoader, cv2", "... PyTorch DataLoader, cv2"),
            ("train", r"DataLoader, simplejpeg", "... PyTorch DataLoader, simplejpeg"),
            ("train", r"WebDataset, simplejpeg", "... WebDataset, simplejpeg"),
            ("train", r"SPDL, simplejpeg", "... SPDL, simplejpeg"),
        )
    ),
    *(
        _loader(variant, what, metric=f"busy {metric}, waiting", text="{p50:.2f} %")
        for metric, variant, what in (
            (
                "uint8",
                "ours, resident Loader",
                "waiting, while steps of 100 ms fill one core; uint8",
            ),
            ("uint8", "DataLoader, simplejpeg", "... PyTorch DataLoader, simplejpeg"),
            ("train", "ours, resident Loader", "the same with training inputs, made on the CPU"),
            ("train", "DataLoader, cv2", "... PyTorch DataLoader, cv2"),
        )
    ),
)
STORE: Final = tuple(
    Figure(what=what, bench="store", variant=variant, metric=metric)
    for what, metric, variant in (
        ("random images, memory-mapped, crc32c verified", "random images", "mmap, crc32c checked"),
        ("... pread", "random images", "pread, crc32c checked"),
        ("... tensorstore, 64 futures", "random images", "tensorstore, 64 futures"),
        ("... zarr-python", "random images", "zarr-python, slices"),
        ("sequential scan, memory-mapped", "scan", "mmap"),
        ("... a plain memory copy", "scan", "memory copy"),
        ("writing a shard", "shard write", "write_image_shard"),
        ("... a plain file", "shard write", "plain file"),
    )
)
PREPROCESS: Final = tuple(
    Figure(what=what, bench="preprocess", variant=variant, metric=metric)
    for what, metric, variant in (
        ("JPEGs copied unchanged", "passthrough", "shard_images"),
        ("... read and written as one file a shard", "passthrough", ".*fsync"),
        ("640 x 480 frames recoded, one process", "recode", "shard_images"),
        ("... the bare loop of simplejpeg", "recode", "simplejpeg"),
        ("ARCTIC-sized frames recoded", "recode, ARCTIC still", "shard_images"),
        ("... the bare loop of simplejpeg", "recode, ARCTIC still", "simplejpeg"),
        ("progressive JPEGs made baseline, lossless", "transcode", "shard_images"),
        ("... jpeglib, as documented", "transcode", "jpeglib, as documented"),
    )
)
MANO: Final = tuple(
    Figure(what=f"{'... ' * (variant == 'smplx')}{what}", bench="mano", variant=variant, metric=m)
    for m in ("right hands, eager", "right hands, compiled", "both sides, compiled")
    for variant, what in (("ours", f"MANO layer, {m}"), ("smplx", "smplx"))
)
STRESS: Final = (
    Figure(
        what="training killed and continued: bitwise equal weights",
        bench="soak",
        variant="killed and continued",
        metric="bitwise equal",
        text="{p50:.0f} kills in {steps} steps",
    ),
    Figure(
        what="faults injected into checkpoint writing: the old or the new state is read",
        bench="soak",
        variant="checkpoint faults",
        metric="old or new state",
        text="{p50:,.0f} faults",
    ),
    *(
        Figure(
            what=f"{what} killed, signalled, without room: nothing torn, goes on to its end",
            bench="soak",
            variant=f"interrupted {variant}",
            metric="ended right",
            text="{p50:.0f} of {n} interruptions",
        )
        for what, variant in (
            ("build", "build-cache"),
            ("build by two workers", "build-cache, two workers"),
            ("training", "run"),
            ("evaluation", "evaluate"),
            ("evaluation with an export", "export"),
            ("prediction", "predict"),
        )
    ),
    *(
        Figure(
            what=f"{dataset} build killed: same bytes as an undisturbed one",
            bench="soak",
            variant=f"build {name}",
            metric="kills survived",
            text="{p50:.0f} kills, {frames:,} frames, {files_equal:,} files",
        )
        for name, dataset in (("dexycb", "DexYCB"), ("arctic", "ARCTIC"))
    ),
    *(
        Figure(
            what=f"peak memory of building {dataset}, all processes",
            bench="soak",
            variant=f"build {name}",
            metric="memory of all processes",
            text="{p50:.0f} MB for {frames:,} frames",
        )
        for name, dataset in (("dexycb", "DexYCB"), ("arctic", "ARCTIC"))
    ),
    *(
        Figure(
            what=f"growth of host memory, {codec} loader",
            bench="soak",
            variant=f"loader, {codec}",
            metric="host memory",
            text="{p50:.2f} MB per epoch over {epochs} epochs",
        )
        for codec in ("rgb", "stream")
    ),
)
GPU: Final = (
    Figure(
        what="fill: decode to the cache, best load of the JPEG engines",
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
        what="... as a fraction of a ResNet-50 training step",
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
            what=f"`{experiment}`: {what}",
            bench="gpu",
            variant=f"{experiment}, loop",
            metric=metric,
            text=text,
            aim=aim,
        )
        for experiment in ("freihand_resnet50", "freihand_vits", "arctic_baseline")
        for what, metric, text, aim in (
            ("training", "samples_per_s", "{p50:,.0f} samples/s", ""),
            (
                "of the ceiling, one batch again and again",
                "of the cached batch's ceiling",
                "{p50:.1f} %",
                "99 %",
            ),
            ("fraction of the time waiting for data", "data_share", "{p50:.2%}", "under 0.5 %"),
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

# --- docs/losses.md -------------------------------------------------------------------------------

LOSSES: Final = (
    *(
        Figure(
            what=f"launches of a forward and backward, {name}",
            bench="losses",
            variant=re.escape(name),
            metric="launches",
            text="{p50:.0f}",
        )
        for name in ("eager", "torch.compile", "Triton")
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

# --- docs/training.md -----------------------------------------------------------------------------

_ARCTIC_SCORES: Final = (
    "{%s[mpjpe/ra/h]:.1f} | {%s[cdev/ho]:.1f} | {%s[aae]:.1f} | {%s[success_rate/0.05]:.0f} %% | "
    "{%s[mdev/h]:.1f} | {%s[acc/h]:.1f} | {%s[acc/o]:.1f}"
)


def _arctic(what: str, variant: str, scores: str = "run") -> Figure:
    return Figure(
        what=what,
        bench="soak",
        variant=f"arctic_sample, {variant}",
        metric="MPJPE-RA over the mean's",
        text=_ARCTIC_SCORES % ((scores,) * 7),
    )


ARCTIC: Final = (
    _arctic("single frames, `experiment=arctic_sample`", "single frames"),
    _arctic("... trained 1,000 steps more, backbone frozen", "tuned frames"),
    _arctic("... the same 1,000 steps on windows of 9 frames", "tuned windows"),
    _arctic("single frames, labels shuffled", "shuffled labels"),
    _arctic("mean of the training set", "single frames", "mean"),
)


def arctic_table(rows: Rows) -> str:
    """Return the scores on synthetic ARCTIC sequences, a column per score, in Markdown."""
    names = (
        "MPJPE-RA mm", "CDev mm", "AAE deg", "success at 5 %", "MDev mm", "ACC hands m/s^2",
        "ACC object m/s^2",
    )  # fmt: skip
    lines = [f"| {figure.what} | {figure.value(rows)} |" for figure in ARCTIC]
    head = f"| | {' | '.join(names)} |"
    return "\n".join([head, "|---" * (len(names) + 1) + "|", *lines]) + "\n"
