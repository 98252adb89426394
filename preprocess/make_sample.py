"""``make-sample``: a small rendered dataset in an official on-disk format.

The hand is procedural, with the topology of MANO: a synthetic replacement for the licensed model
and the real data. Use it for tests and to try the whole pipeline, not to measure accuracy.
"""

import shlex
from pathlib import Path

from pipeline.app.files import naming
from pipeline.app.progress import show_progress
from pipeline.app.words import say
from preprocess.config import SampleConfig


def main(config: SampleConfig) -> int:
    """Render a synthetic dataset in an official on-disk format, with synthetic MANO files."""
    from preprocess.sample.generate import write_sample

    out = Path(config.out).expanduser()
    with show_progress("make-sample") as report, naming(out):
        summary = write_sample(
            config.dataset,
            out,
            config.num,
            config.seed,
            num_eval=config.num_eval,
            workers=config.workers,
            progress=report,
        )
    counts = ", ".join(f"{name} {count}" for name, count in summary.num_images.items())
    words = [f"dataset={config.dataset}", f"root={out}", f"mano={summary.mano}"]
    words.append(f"out={out.with_name(out.name + '.zarr')}")
    text = (
        f"{out}: synthetic {config.dataset}, rendered from a procedural hand; images: {counts}\n"
        f"  next: {shlex.join(['python', '-m', 'preprocess', 'build-cache', *words])}"
    )
    say(text)
    return 0
