"""Processes that train: forks of a server that has imported torch and the trainer once."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["train.run", "timm", "torch.utils.tensorboard"]


def start(function: Callable[..., object], *args: object) -> Any:
    """Start ``function(*args)``; it is imported by name, so its module should import little."""
    PROCESSES.set_forkserver_preload(IMPORTED)
    process = PROCESSES.Process(target=function, args=args)
    process.start()
    return process


def as_rank(
    rank: int, world: int, port: int, said: Path, function: Callable[..., int], *args: object
) -> None:
    """Call ``function`` in the surroundings that torchrun makes, and end with what it returns.

    Args:
        rank: Of this process.
        world: Number of ranks; of one alone torchrun's environment is absent.
        port: Of the store by which the ranks find each other.
        said: File that gets what it prints.
        function: What to run.
        *args: Its arguments.
    """
    output = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the parent's, as torchrun's is
        }
    sys.exit(function(*args))
