"""Processes that train: forks of a server that has imported torch and the trainer once."""

import importlib
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
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


def as_command(
    package: str, words: Sequence[str], folder: Path, said: Path, limits: Mapping[int, int]
) -> None:
    """Run ``python -m package words...`` as a shell in ``folder`` would, and end as it does.

    Args:
        package: The package.
        words: Command and options.
        folder: Working directory; home and temporary files are in it.
        said: File or named pipe that gets what it prints.
        limits: Soft limits of resources, for example the size of a file: beyond, writing fails as
            on a full disk.
    """
    os.chdir(folder)
    os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    os.environ.pop("XDG_CACHE_HOME", None)
    output = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as a new interpreter does
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True  # Python would keep what it could not write to the end
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
    from pipeline.app.cli import front_door

    commands = importlib.import_module(f"{package}.__main__").COMMANDS
    sys.exit(front_door(f"python -m {package}", commands, words))
