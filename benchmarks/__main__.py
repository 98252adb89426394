"""``python -m benchmarks``: the benchmark CLI."""

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
        summary="read rates of the store against tensorstore, zarr-python and a plain memory copy",
    ),
    Command(
        name="preprocess",
        module="benchmarks.preprocess.run",
        config="benchmarks.config:PreprocessBenchConfig",
        summary="image copying, recoding and transcoding of a build against bare library calls",
    ),
    Command(
        name="mano",
        module="benchmarks.mano",
        config="benchmarks.config:ManoBenchConfig",
        summary="forward and backward pass of the MANO layer against smplx's",
    ),
    Command(
        name="loader",
        module="benchmarks.loader.run",
        config="benchmarks.config:LoaderBenchConfig",
        summary="batches per second against DataLoader, WebDataset, SPDL and hardware limits",
    ),
    Command(
        name="losses",
        module="benchmarks.losses",
        config="benchmarks.config:LossesBenchConfig",
        summary="launches, bytes, time of the loss terms: eager, compiled, Triton, CUDA graph",
    ),
    Command(
        name="kernels",
        module="benchmarks.kernels",
        config="benchmarks.config:KernelsBenchConfig",
        summary="register usage of every Triton kernel on every target GPU; needs no GPU",
    ),
    Command(
        name="gpu",
        module="benchmarks.gpu.run",
        config="benchmarks.config:GpuSuiteConfig",
        summary="all checks and benchmarks that need a GPU, the most valuable first",
    ),
    Command(
        name="quickstart",
        module="benchmarks.quickstart",
        config="benchmarks.config:QuickstartBenchConfig",
        summary="time and scores of make quickstart over several seeds",
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
    """Run the command given in ``sys.argv``."""
    return front_door("python -m benchmarks", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(entry())
