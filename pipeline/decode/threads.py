"""Threads of the decoder, and the memory that each of them holds."""

import os
from typing import Final

import torch

from pipeline.app.machine import usable_cores
from pipeline.config import CacheConfig

MOST_BESIDE_GPU: Final = 16
"""More add little: a GPU's engines and cores decode, the threads parse headers and copy."""
DEVICE_BYTES: Final = 16 * 2**20
"""What DALI's decoder sets aside on a GPU for each thread."""


def decoder_threads(config: CacheConfig, device: torch.device) -> int:
    """Return the number of threads: as configured, else of the cores this process's share.

    The ranks of a machine (torchrun's ``LOCAL_WORLD_SIZE``) divide its cores among them.
    """
    if config.decode_threads:
        return config.decode_threads
    cores = int(usable_cores()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    most = MOST_BESIDE_GPU if device.type == "cuda" else cores
    return max(1, min(cores, most))
