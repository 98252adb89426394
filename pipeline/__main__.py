"""``python -m pipeline``: memory and time cost of a store, without training."""

import sys

try:
    from pipeline.app.cli import Command, front_door
except ImportError:
    sys.exit(
        "python -m pipeline: another 'pipeline' hides Handloom's own; run from another folder "
        "or use the console script handloom-pipeline"
    )

COMMANDS = (
    Command(
        name="plan",
        module="pipeline.memory",
        config="pipeline.config:PlanConfig",
        summary="say what of a store fits on a device, without having the device",
    ),
    Command(
        name="bench",
        module="pipeline.bench",
        config="pipeline.config:BenchConfig",
        summary="measure each stage from the store to the batch",
    ),
)


def entry() -> int:
    """Run one command from ``sys.argv``."""
    return front_door("python -m pipeline", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(entry())
