"""``python -m train``: train and evaluate models on stores."""

import sys

try:
    from pipeline.app.cli import Command, front_door
except ImportError:
    sys.exit(
        "python -m train: another 'pipeline' hides Handloom's own; run from another folder "
        "or use the console script handloom-train"
    )

COMMANDS = (
    Command(
        name="run",
        module="train.run",
        config="train.config:RunConfig",
        summary="train a model on a store",
        multirun="train.multirun:main",
    ),
    Command(
        name="evaluate",
        module="train.evaluate.evaluate",
        config="train.config:EvaluateConfig",
        summary="score a run on a split, beside the mean pose and the untrained network",
    ),
    Command(
        name="predict",
        module="train.predict.predict",
        config="train.config:PredictConfig",
        summary="predict the hands of images or a video of your own",
    ),
    Command(
        name="export",
        module="train.export.export",
        config="train.config:ExportConfig",
        summary="write a trained network as one ONNX, torch.export or TorchScript file",
    ),
    Command(
        name="doctor",
        module="train.doctor.doctor",
        config="train.doctor.config:DoctorConfig",
        summary="check driver, GPU, libraries, kernels, disk, store and MANO of this machine",
    ),
)


def entry() -> int:
    """Run one command from ``sys.argv``."""
    return front_door("python -m train", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(entry())
