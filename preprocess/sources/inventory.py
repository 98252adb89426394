"""Inventory of a raw dataset: what its reader uses, passes over and misses.

Hidden entries are never data: macOS leaves a ``._NAME`` beside every file of an archive, with the
suffix of an image. They are counted; everything else that is passed over is named.
"""

import os
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.app.words import printable
from preprocess.records import SourceError

_MOST_NAMES: Final = 1000
"""Maximum number of names in a note."""
_FIRST: Final = 3
"""Number of names in a warning."""


def _never(_: str) -> bool:
    return False


@dataclass(kw_only=True, slots=True)
class Inventory:
    """Account of the folders that a reader lists; ``notes`` puts it into the report."""

    dataset: str
    root: Path
    passed_over: list[str] = field(default_factory=list)
    """Unused entries, as paths below the root; a folder ends in ``/``."""
    missing: dict[str, list[str]] = field(default_factory=dict)
    """Names of what is not there, by what it is."""
    warnings: list[str] = field(default_factory=list)
    """Sentences for the end of the build."""
    num_entries: int = 0
    """Number of entries listed, without hidden ones."""
    num_hidden: int = 0

    def folders(
        self,
        path: str,
        is_used: Callable[[str], object],
        *,
        is_known: Callable[[str], object] = _never,
    ) -> list[str]:
        """Return the sorted names of the folders in ``root/path`` that ``is_used`` accepts.

        The others count as passed over if ``is_known`` does not accept them.

        Raises:
            SourceError: If the folder cannot be listed.
        """
        return self._used(path, os.DirEntry.is_dir, is_used, is_known)

    def files(
        self,
        path: str,
        is_used: Callable[[str], object],
        *,
        is_known: Callable[[str], object] = _never,
    ) -> list[str]:
        """Return the sorted names of the regular files in ``root/path`` that ``is_used`` accepts.

        The others count as passed over if ``is_known`` does not accept them.

        Raises:
            SourceError: If the folder cannot be listed.
        """
        return self._used(path, os.DirEntry.is_file, is_used, is_known)

    def _used(
        self,
        path: str,
        is_kind: Callable[["os.DirEntry[str]"], bool],
        is_used: Callable[[str], object],
        is_known: Callable[[str], object],
    ) -> list[str]:
        names = []
        try:
            with os.scandir(self.root / path) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        self.num_hidden += 1
                        continue
                    self.num_entries += 1
                    if is_used(name) and is_kind(entry):
                        names.append(name)
                    elif is_used(name) or not is_known(name):
                        end = "/" if entry.is_dir() else ""
                        self.passed_over.append(printable(f"{path}/{name}{end}".lstrip("/")))
        except OSError as error:
            raise SourceError(
                f"{self.dataset}: cannot list {self.root / path} ({error.strerror}); make it "
                "readable or unpack it again"
            ) from error
        return sorted(names)

    def expect(self, what: str, names: Collection[str], where: str, there: Container[str]) -> None:
        """Note, with a warning, which ``names`` are not among those ``there``.

        Args:
            what: What the names are, plural.
            names: Names to look for.
            where: Where they should be.
            there: Names that are there.
        """
        missing = sorted(printable(name) for name in set(names) if name not in there)
        if missing:
            self.missing[f"{what} not in {where}"] = missing
            share = f"{len(missing)} of {len(set(names))} {what}"
            self.warnings.append(f"{share} are not in {where}: {first_names(missing)}")

    def notes(self) -> dict[str, Any]:
        """Return the notes for the report; ``warnings`` are shown at the end of the build."""
        notes: dict[str, Any] = {}
        warnings = list(self.warnings)
        if self.missing:
            notes["missing"] = {what: _counted(names) for what, names in self.missing.items()}
        if self.passed_over:
            names = sorted(self.passed_over)
            notes["passed_over"] = _counted(names)
            warnings.append(
                f"{len(names)} of {self.num_entries} files and folders were passed over for their "
                f"names or kinds: {first_names(names)}"
            )
        if self.num_hidden:
            notes["hidden_files"] = self.num_hidden
        return notes | ({"warnings": warnings} if warnings else {})


def _counted(names: Sequence[str]) -> dict[str, Any]:
    return {"count": len(names), "names": list(names[:_MOST_NAMES])}


def first_names(names: Sequence[str]) -> str:
    """Return the first names as text, and how many more there are."""
    more = len(names) - _FIRST
    return ", ".join(names[:_FIRST]) + (f" and {more} more" if more > 0 else "")
