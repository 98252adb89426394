"""Check of ``python -m train doctor``: installed packages. Imports only ``packaging``."""

import tomllib
from importlib import metadata

from packaging.requirements import Requirement

from pipeline.app.cli import ROOT
from pipeline.app.machine import version_of
from train.doctor.config import DoctorConfig
from train.doctor.finding import Finding, error, ok


def packages(_: DoctorConfig) -> Finding:
    """Compare the installed packages with Handloom's declared dependencies."""
    found: dict[str, str | None] = {}
    misfits = []
    for text in _declared():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found[wanted.name] = version = version_of(wanted.name)
        if version is None:
            misfits.append(f"{wanted.name} is missing")
        elif not wanted.specifier.contains(version, prereleases=True):
            misfits.append(f"{wanted.name} {version} is not {wanted.specifier}")
    if misfits:
        return error(
            "; ".join(misfits),
            "install again: make quickstart, or uv pip install -c constraints.txt -e .",
            versions=found,
        )
    return ok(", ".join(f"{name} {version}" for name, version in found.items()), versions=found)


def _declared() -> list[str]:
    """Return the declared dependencies, of the source tree or of the installed package."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
        return [str(text) for text in declared]
    return metadata.requires("handloom") or []
