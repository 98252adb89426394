"""``python -m benchmarks``: what it costs, measured on this machine."""

import sys

try:
    from pipeline.app.cli import Command, front_door
except ImportError:
    sys.exit(
        "python -m benchmarks: another 'pipeline' hides Handloom's own; run from another folder "
        "or use the console script handloom-bench"
    )

COMMANDS = (
    Command(
        name="store",
        module="benchmarks.store",
        config="benchmarks.config:StoreBenchConfig",
        summary="read rates of the store beside tensorstore, zarr-python and a plain memory copy",
    ),
    Command(
        name="preprocess",
        module="benchmarks.preprocess.run",
        config="benchmarks.config:PreprocessBenchConfig",
        summary="images of a build: copied, recoded and transcoded, beside the bare library calls",
    ),
    Command(
        name="mano",
        module="benchmarks.mano",
        config="benchmarks.config:ManoBenchConfig",
        summary="forward and backward of the MANO layer beside smplx's",
    ),
    Command(
        name="loader",
        module="benchmarks.loader.run",
        config="benchmarks.config:LoaderBenchConfig",
        summary="batches per second beside DataLoader, WebDataset, SPDL and the machine's limits",
    ),
    Command(
        name="losses",
        module="benchmarks.losses",
        config="benchmarks.config:LossesBenchConfig",
        summary="launches, bytes, time of the loss terms: eager, compiled, by Triton, in a graph",
    ),
    Command(
        name="kernels",
        module="benchmarks.kernels",
        config="benchmarks.config:KernelsBenchConfig",
        summary="registers of every Triton kernel on every GPU it is meant for; needs no GPU",
    ),
    Command(
        name="gpu",
        module="benchmarks.gpu.run",
        config="benchmarks.config:GpuSuiteConfig",
        summary="everything that needs a GPU, in one go under 9 minutes",
    ),
    Command(
        name="readme",
        module="benchmarks.readme",
        config="benchmarks.config:ReadmeConfig",
        summary="write the generated tables of README.md and docs/",
    ),
    Command(
        name="picture",
        module="benchmarks.picture",
        config="benchmarks.config:PictureConfig",
        summary="draw the picture of README.md from the synthetic datasets",
    ),
)


def entry() -> int:
    """Run one command from ``sys.argv``."""
    return front_door("python -m benchmarks", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(entry())
