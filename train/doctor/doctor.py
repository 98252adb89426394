"""``python -m train doctor``: inspects this machine, diagnoses problems and suggests fixes."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.app.files import replace_file
from pipeline.app.words import sentence
from train.doctor.config import DoctorConfig
from train.doctor.finding import Finding, Verdict

CHECKS: Final = (
    ("packages", "train.doctor.packages:packages"),
    ("driver", "train.doctor.gpu:driver"),
    ("torch", "train.doctor.gpu:torch_device"),
    ("DALI", "train.doctor.gpu:dali"),
    ("triton", "train.doctor.gpu:triton_compiler"),
    ("JPEG engines", "train.doctor.gpu:jpeg_engines"),
    ("GPU memory", "train.doctor.gpu:gpu_memory"),
    ("host memory", "train.doctor.machine:host_memory"),
    ("cores", "train.doctor.machine:cores"),
    ("threads", "train.doctor.machine:threads"),
    ("C compiler", "train.doctor.machine:compiler"),
    ("gather kernel", "train.doctor.parity:gather_kernel"),
    ("prepare kernel", "train.doctor.parity:prepare_kernel"),
    ("loss kernels", "train.doctor.losses:loss_kernels"),
    ("store", "train.doctor.data:store"),
    ("disk", "train.doctor.data:disk"),
    ("MANO", "train.doctor.data:mano"),
)
"""Name and ``module:function`` of each check, imported only to run it: imports may be broken."""
_STYLE: Final = {Verdict.ok: "green", Verdict.warning: "yellow", Verdict.error: "bold red"}


def main(config: DoctorConfig) -> int:
    """Check driver, GPU, libraries, kernels, memory, disk, store and MANO of this machine.

    Prints each finding with its verdict, and a fix for each problem. Changes nothing, except that
    pages of the store are dropped from the page cache to measure the disk. Exit code 1: a check
    found an error.

    Example:
        python -m train doctor store=build/freihand.zarr mano=build/mano out=doctor.json
    """
    findings = run_checks(CHECKS, config)
    Console().print(sheet(findings))
    if config.out is not None:
        rows = [{"check": name, **asdict(finding)} for name, finding in findings]
        text = json.dumps(rows, indent=2, default=str) + "\n"
        path = Path(config.out).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    return int(any(finding.verdict is Verdict.error for _, finding in findings))


def run_checks(
    checks: Sequence[tuple[str, str]], config: DoctorConfig
) -> list[tuple[str, Finding]]:
    """Run every check; one that raises becomes an error finding and does not stop the others."""
    findings = []
    for name, place in checks:
        try:
            module, _, function = place.partition(":")
            finding: Finding = getattr(importlib.import_module(module), function)(config)
        except Exception as error:  # any failure is reported in the table
            finding = Finding(
                found=f"{type(error).__name__}: {sentence(error)}",
                verdict=Verdict.error,
                cure=_cure(error),
            )
        findings.append((name, finding))
    return findings


def sheet(findings: Sequence[tuple[str, Finding]]) -> Table:
    """Return the findings as a table, with a column of fixes if there are any."""
    table = Table(show_lines=True)
    columns = ["check", "found", "verdict"]
    has_cures = any(finding.cure for _, finding in findings)
    for column in [*columns, *(["fix"] if has_cures else [])]:
        table.add_column(column, overflow="fold")
    for name, finding in findings:
        style = _STYLE[finding.verdict]
        cells = [name, escape(finding.found), f"[{style}]{finding.verdict.value}[/]"]
        table.add_row(*cells, *([escape(finding.cure)] if has_cures else []))
    return table


def _cure(error: Exception) -> str:
    """Return the fix for a check that raised; our own errors contain it already."""
    if isinstance(error, (ValueError, OSError)):
        return "see what was found"
    if isinstance(error, ImportError):
        return "install again: make quickstart"
    return "report this with the output of: python -m train doctor out=doctor.json"
