"""Which device and which arithmetic to use; never a silent fall-back."""

from pathlib import Path

import torch

from pipeline.app.compiler import make_cc_one_program
from train.config import Device, Precision


def choose_device(wanted: Device) -> torch.device:
    """Return the device to run on.

    Raises:
        ValueError: If CUDA was asked for and cannot be used, or ``auto`` finds an NVIDIA device
            that torch cannot use.
    """
    if wanted is Device.cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        make_cc_one_program()
        return torch.device("cuda", torch.cuda.current_device())
    if wanted is Device.cuda:
        raise ValueError(
            f"device=cuda, but torch {torch.__version__} (CUDA {torch.version.cuda}) finds no "
            "usable GPU; check the driver with nvidia-smi"
        )
    if Path("/proc/driver/nvidia/gpus").is_dir():
        raise ValueError(
            f"this machine has an NVIDIA GPU, but torch {torch.__version__} (CUDA "
            f"{torch.version.cuda}) cannot use it; update the driver, install another build with "
            "UV_TORCH_BACKEND, or say device=cpu"
        )
    return torch.device("cpu")


def backbone_dtype(wanted: Precision, device: torch.device) -> torch.dtype:
    """Return the autocast dtype of the backbone."""
    if wanted is Precision.auto:
        cpu = torch.cpu.get_capabilities()
        native = device.type == "cuda" or cpu.get("amx_bf16") or cpu.get("avx512_bf16")
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wanted is Precision.bf16 else torch.float32
