"""Checks of ``python -m train doctor``: processor, host memory, compiler."""

import os
import shlex
from typing import Final

import torch

from pipeline.app.compiler import FIX, compilers
from pipeline.app.machine import read_host_memory, usable_cores
from pipeline.gather import cpu as gather_native
from train.doctor.config import DoctorConfig
from train.doctor.finding import Finding, error, ok, warning

LOW_MEMORY_SHARE: Final = 0.1
FEW_CORES: Final = 4
BUSY_SHARE: Final = 0.5
"""Load per core from which the machine counts as shared."""


def host_memory(_: DoctorConfig) -> Finding:
    """Read the host memory and the container's limit."""
    memory = read_host_memory()
    total, free = memory.total / 1e9, memory.available / 1e9
    text = f"{free:.1f} of {total:.1f} GB available"
    if memory.limit is not None:
        limit = memory.limit / 1e9
        total, free = min(total, limit), memory.left / 1e9
        text += f"; this container may use {limit:.1f} GB and {free:.1f} GB more"
    values = {"available_gb": free, "total_gb": total}
    if free < LOW_MEMORY_SHARE * total:
        return warning(
            text, "end other processes; the labels and the cache fill need memory", **values
        )
    return ok(text, **values)


def cores(_: DoctorConfig) -> Finding:
    """Count the cores of the machine that this process may use."""
    allowed, usable = os.cpu_count() or 1, usable_cores()
    text = f"{usable:g} of {allowed} usable"
    if usable < FEW_CORES:
        cure = "decoding at the fill, and all of it without a GPU, will be slow; give it more cores"
        return warning(text, cure, usable=usable)
    return ok(text, usable=usable)


def threads(_: DoctorConfig) -> Finding:
    """Compare torch's thread count with the cores, and check whether other processes use them."""
    usable, number, load = usable_cores(), torch.get_num_threads(), os.getloadavg()[0]
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    text = (
        f"torch uses {number}; OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')}, "
        f"OMP_WAIT_POLICY {policy}; load {load:.1f}"
    )
    values = {"torch_threads": number, "omp_wait_policy": policy, "load": load}
    cures = []
    if number > max(1.0, usable):
        cures.append(f"threads={max(1, int(usable))}: more than the cores slow each other down")
    if load > BUSY_SHARE * usable and policy.upper() != "PASSIVE":
        cures.append(
            "if others share the machine: export OMP_WAIT_POLICY=PASSIVE, so that waiting threads "
            "sleep instead of spinning"
        )
    return warning(text, "; ".join(cures), **values) if cures else ok(text, **values)


def compiler(_: DoctorConfig) -> Finding:
    """Compile the CPU gather, as the first batch would; Triton needs a compiler too."""
    found = compilers()
    if not found:
        say = error if torch.cuda.is_available() else warning
        cure = f"{FIX}: Triton compiles its launchers, a CPU its gather"
        return say("no C compiler (cc, gcc, clang, or in CC)", cure)
    path = shlex.join(found[0])
    if os.environ.get(gather_native.SWITCH) == "0":
        return warning(
            f"{path}; {gather_native.SWITCH}=0 turns the CPU's gather off",
            f"unset {gather_native.SWITCH}",
            compiler=path,
        )
    if not gather_native.available():
        return warning(
            f"{path} does not build the CPU's gather; the line above says why",
            "another compiler in CC, or a writable XDG_CACHE_HOME",
            compiler=path,
        )
    return ok(f"{path} builds the CPU's gather", compiler=path)
