"""Cross-check ARCTIC labels against those that the official code computed from the same capture.

A build does not need ``processed_seqs/sXX/<sequence>.npy`` and ``splits/{p1,p2}_{train,val}.npy``;
``verify-cache root=...`` compares every sequence of every such file present, and the image list of
each split. The files, 18 GB in total, are read one sequence at a time.

Source:
    The dataset's src/arctic/processing.py and split.py (described in the dataset notes, 5.4).
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from model.mano.files import ManoModels
from pipeline.pickles import read_npy_parts
from preprocess.records import CrossCheck, Lens, Rows, SourceError
from preprocess.sources.arctic.compare import LIMITS, Apart, compare_sequence
from preprocess.sources.arctic.files import NAME, Rig

_KEYS: Final = frozenset({"cam_coord", "2d", "bbox", "params"})
"""Required keys in the dictionary of a sequence."""
_MAX_STEPS: Final = 50_000_000
"""Limit on pickle values: three for each of 1.5 million image names, and 500 per sequence."""


def checked_files(root: Path) -> list[Path]:
    """Return the official files that are present."""
    splits = [root / "splits" / f"{p}_{s}.npy" for p in ("p1", "p2") for s in ("train", "val")]
    processed = sorted((root / "processed_seqs").glob("s??/[!.]*.npy"))
    return [path for path in (*processed, *splits) if path.is_file()]


def cross_check(
    root: Path,
    files: Sequence[Path],
    rigs: Mapping[str, Rig],
    lenses: Mapping[str, Lens],
    mano: ManoModels | None,
    rows: Rows,
    splits: Mapping[str, Int64[np.ndarray, " k"]],
) -> CrossCheck:
    """Compare the labels of the sequences of ``lenses`` with those in every official file."""
    problems: list[str] = []
    found: list[list[Apart]] = []

    def compare(path: Path, key: str, theirs: Mapping[str, Any]) -> None:
        sequence = key or f"{path.parent.name}/{path.stem}"
        if sequence not in lenses:
            return
        try:
            rig, lens = rigs[sequence.split("/", maxsplit=1)[0]], lenses[sequence]
            apart = compare_sequence(root, sequence, theirs, rig, lens, mano)
        except SourceError as error:
            problems.append(f"{path}: {sequence} cannot be compared: {error}")
            return
        found.append(apart)
        if over := [str(one) for one in apart if one.is_over]:
            problems.append(
                f"{path} differs from our labels in {', '.join(over)}, expected at most 1e-4 m, "
                "0.05 px and 1e-4 rad; download raw_seqs, meta and that file again"
            )

    for path in files:
        try:
            take = functools.partial(compare, path)
            rest = read_npy_parts(path, name=str(path), keys=_KEYS, take=take, max_steps=_MAX_STEPS)
        except (OSError, ValueError) as error:
            problems.append(f"{NAME}: {error}; download the file again or remove it")
        else:
            problems += _names_differ(path, rest, rows, splits)
    return CrossCheck(problems=problems, summary=_summary(files, found, mano))


def _summary(
    files: Sequence[Path], found: Sequence[Sequence[Apart]], mano: ManoModels | None
) -> str:
    largest = [
        max((one for apart in found for one in apart if one.quantity == name), key=_value)
        for name in LIMITS
        if any(one.quantity == name for apart in found for one in apart)
    ]
    agree = sum(not any(one.is_over for one in apart) for apart in found)
    without = "" if mano is not None else " (without mano=: not the hands)"
    return (
        f"{NAME}: {len(found)} sequences in {len(files)} files of processed_seqs and splits "
        f"compared{without}, {agree} agree; largest differences: "
        f"{', '.join(map(str, largest)) or 'none'}"
    )


def _value(apart: Apart) -> float:
    return apart.value


def _names_differ(
    path: Path, rest: np.ndarray, rows: Rows, splits: Mapping[str, Int64[np.ndarray, " k"]]
) -> list[str]:
    """Return the problem if the image list of a split file differs from that of our split."""
    content = rest.item() if rest.size == 1 else None
    names = content.get("imgnames") if isinstance(content, Mapping) else None
    if names is None or path.stem not in splits:
        return []
    ours = ["/".join(rows.image[i].split("/")[1:]) for i in splits[path.stem]]
    there = set(rows.sequence)
    theirs = ["/".join(str(name).split("/")[-4:]) for name in names]
    theirs = [name for name in theirs if "/".join(name.split("/")[:2]) in there]
    if theirs == ours:
        return []
    place = next(
        (i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]),
        min(len(theirs), len(ours)),
    )
    shown = [found[place] if place < len(found) else "the end" for found in (theirs, ours)]
    problem = (
        f"{path}: imgnames lists {len(theirs)} images of the sequences here, our split {path.stem} "
        f"has {len(ours)}; the first difference is at {place}: {shown[0]}, ours {shown[1]}; "
        "download splits_json or that file again"
    )
    return [problem]
