"""A DexYCB dataset of any size: sequences of a rendered sample hard-linked under new names."""

import os
import shutil
from pathlib import Path

from preprocess.sample.generate import write_sample

SEQUENCE_NAME = "20201231_{:06d}"


def dexycb_of(folder: Path, num_frames: int, *, sample: Path | None = None) -> Path:
    """Write DexYCB with at least ``num_frames`` images below ``folder``; return its root.

    Args:
        folder: Output folder for ``dexycb`` and, without ``sample``, the rendered ``sample``.
        num_frames: Number of images, rounded up to whole sequences.
        sample: An existing sample to use.
    """
    if sample is None:
        sample = folder / "sample"
        write_sample("dexycb", sample, 128, 4)
    root = folder / "dexycb"
    sequences = sorted(path.parent for path in sample.glob("*/*/meta.yml"))
    for name in ("calibration", "models", "mano"):
        shutil.copytree(sample / name, root / name)
    written, number = 0, 0
    while written < num_frames:
        source = sequences[number % len(sequences)]
        target = root / source.parent.name / SEQUENCE_NAME.format(number)
        shutil.copytree(source, target, copy_function=os.link)
        written += sum(1 for _ in target.glob("*/color_*.jpg"))
        number += 1
    return root
