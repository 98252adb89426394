"""``python -m preprocess``: the CLI that converts raw datasets to stores."""

import sys

try:
    from pipeline.app.cli import Command, front_door
except ImportError:
    sys.exit(
        "python -m preprocess: another 'pipeline' hides Handloom's own; run from another folder "
        "or use the console script handloom-preprocess"
    )

COMMANDS = (
    Command(
        name="make-sample",
        module="preprocess.make_sample",
        config="preprocess.config:SampleConfig",
        summary="render a small synthetic dataset in an official on-disk format",
    ),
    Command(
        name="import-mano",
        module="preprocess.mano.import_mano",
        config="preprocess.config:ImportManoConfig",
        summary="convert your MANO download to plain .npz files, without running its pickles",
    ),
    Command(
        name="check",
        module="preprocess.check",
        config="preprocess.config:CheckConfig",
        summary="look at a raw dataset, your own included: what is there, likely mistakes, a sheet",
    ),
    Command(
        name="build-cache",
        module="preprocess.builder.build",
        config="preprocess.config:BuildConfig",
        summary="convert a raw dataset to one sharded Zarr v3 store",
    ),
    Command(
        name="verify-cache",
        module="preprocess.builder.verify",
        config="preprocess.config:VerifyConfig",
        summary="check every byte of a store, optionally against the raw dataset",
    ),
    Command(
        name="show-cache",
        module="preprocess.show.show",
        config="preprocess.config:ShowConfig",
        summary="draw a contact sheet with skeletons; print licence and citation",
    ),
)


def entry() -> int:
    """Run the command given in ``sys.argv``."""
    return front_door("python -m preprocess", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(entry())
