"""Write a small dataset in an official on-disk format, rendered from the synthetic hand.

Every sample is a pure function of (seed, split, index): it does not depend on the number of workers
or samples, and the first samples of a larger set equal a smaller set's. Only DexYCB and ARCTIC are
planned as a whole: there the number of images is part of the seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.store.schema import SYNTHETIC_FILE
from preprocess.config import SAMPLE_DATASETS
from preprocess.sample.freihand import write as freihand
from preprocess.sample.hand.mesh import write_mano
from preprocess.sample.interhand26m import write as interhand26m
from preprocess.sample.processes import in_processes

_SMALLEST_EVAL: Final = {"freihand": 8, "interhand26m": 4}

Writer = Callable[
    [Path, int, int, int | None, int, Callable[[int, int], None] | None], dict[str, int]
]
"""(out, num, seed, num_eval, workers, progress) -> images per part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSummary:
    """Summary of a written sample: ``num_images`` per split; ``mano``, the matching hand model."""

    dataset: str
    out: Path
    num_images: dict[str, int]
    mano: Path
    mano_shipped: Path


def write_sample(
    dataset: str,
    out: Path,
    num: int,
    seed: int,
    *,
    num_eval: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSummary:
    """Write a synthetic dataset and the synthetic hand models it was made with.

    ``out/mano`` holds the correct left hand, ``out/mano_shipped`` the one with the shape basis as
    MANO ships it (smplx issue 48).

    Args:
        dataset: One of ``SAMPLE_DATASETS``.
        out: Target folder; must be empty or absent.
        num: FreiHAND: unique poses, each written as four images. InterHand2.6M and HO-3D: training
            images. DexYCB: images, rounded up to eight per time step. ARCTIC: images of the
            official set, nine per frame.
        seed: Any non-negative integer.
        num_eval: Evaluation images (FreiHAND, HO-3D) or images of each of val and test
            (InterHand2.6M); by default ``num // 8``, at least a few. DexYCB and ARCTIC have
            none.
        workers: Processes; 0: one per core, 1: run in this process.
        progress: Called with (done, total) samples.

    Raises:
        ValueError: If the dataset is unknown or a number is out of range.
        FileExistsError: If ``out`` is not empty.
    """
    if dataset not in SAMPLE_DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(SAMPLE_DATASETS)}, got {dataset!r}")
    for name, value, lowest in (("num", num, 1), ("seed", seed, 0), ("workers", workers, 0)):
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")
    if num_eval is not None and num_eval < 1:
        raise ValueError(f"num_eval must be at least 1, got {num_eval}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; name a new folder or delete it first")
    out.mkdir(parents=True, exist_ok=True)
    (out / SYNTHETIC_FILE).write_text(
        f"Synthetic images and labels in the format of {dataset}, rendered by\n"
        f"python -m preprocess make-sample dataset={dataset} num={num} seed={seed}\n"
        "They test software; they are not the dataset. Stores built from this folder say so by\n"
        "this file.\n",
        encoding="utf-8",
    )
    write_mano(out / "mano")
    write_mano(out / "mano_shipped", shapedirs_bug=True)
    counts = _writer(dataset)(out, num, seed, num_eval, workers, progress)
    return SampleSummary(
        dataset=dataset,
        out=out,
        num_images=counts,
        mano=out / "mano",
        mano_shipped=out / "mano_shipped",
    )


def _writer(dataset: str) -> Writer:
    """Return the writer of a dataset; those with objects import their modules only here."""
    if dataset == "freihand":
        return _write_freihand
    if dataset == "interhand26m":
        return _write_interhand26m
    if dataset == "dexycb":
        from preprocess.sample.dexycb import write as dexycb

        return dexycb.write
    if dataset == "arctic":
        from preprocess.sample.arctic import write as arctic

        return arctic.write
    from preprocess.sample.ho3d import write as ho3d

    return ho3d.write


def _write_freihand(
    out: Path,
    num: int,
    seed: int,
    num_eval: int | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Write FreiHAND's files; returns images per split."""
    counts = {"training": num, "evaluation": num_eval or max(_SMALLEST_EVAL["freihand"], num // 8)}
    freihand.make_folders(out)
    tasks = [(split, idx) for split, count in counts.items() for idx in range(count)]
    job = partial(_freihand_task, out, seed, num)
    rows = list(in_processes(job, tasks, workers, progress))
    for split in counts:
        own = [row for (name, _), row in zip(tasks, rows, strict=True) if name == split]
        freihand.write_labels(out, split, own)
    return {"training": num * freihand.NUM_VERSIONS, "evaluation": counts["evaluation"]}


def _freihand_task(out: Path, seed: int, num: int, task: tuple[str, int]) -> dict[str, str]:
    """One sample of FreiHAND; at module level so that a spawned process can import it."""
    split, idx = task
    return freihand.write_one(out, seed, split, idx, num)


def _write_interhand26m(
    out: Path,
    num: int,
    seed: int,
    num_eval: int | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Write InterHand2.6M's files; returns images per split."""
    few = num_eval or max(_SMALLEST_EVAL["interhand26m"], num // 8)
    counts = {"train": num, "val": few, "test": few}
    tasks = [(split, idx) for split, count in counts.items() for idx in range(count)]
    rows = list(in_processes(partial(_interhand26m_task, out, seed), tasks, workers, progress))
    for split in counts:
        own = [row for row in rows if row.slot.split == split]
        interhand26m.write_labels(out, seed, split, own)
    return counts


def _interhand26m_task(out: Path, seed: int, task: tuple[str, int]) -> interhand26m.Rows:
    """One image of InterHand2.6M; at module level so that a spawned process can import it."""
    split, idx = task
    return interhand26m.write_one(out, seed, split, idx)
