"""Checks of ``python -m train doctor``: driver, torch, DALI, Triton and the GPU itself."""

import ctypes
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pynvml
import torch
from packaging.requirements import Requirement

from pipeline.app.machine import version_of
from train.config import Device
from train.device.device import choose_device
from train.doctor.config import DoctorConfig
from train.doctor.finding import Finding, error, ok, warning
from train.watch.flops import peak_tflops
from train.watch.nvml import read_or_none

GPUS: Final = Path("/proc/driver/nvidia/gpus")
NONE: Final = "no NVIDIA GPU"
NVJPEG: Final = ("nvidia-nvjpeg-cu12", "nvidia-nvjpeg")
NEWER: Final = "update the driver, or install for it: UV_TORCH_BACKEND=cu126 make quickstart"


def driver(_: DoctorConfig) -> Finding:
    """Query the driver's version and the newest CUDA it supports."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as problem:
        if not GPUS.is_dir():
            return ok(NONE)
        cure = "load the driver: nvidia-smi must work; in a container: --gpus all"
        return error(f"GPU without a working driver: {problem}", cure)
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    finally:
        read_or_none(pynvml.nvmlShutdown)
    text = f"{version}, CUDA up to {cuda // 1000}.{cuda % 1000 // 10}"
    for library, built in (("torch", torch.version.cuda), ("DALI", _dali_cuda())):
        if built and int(built.split(".")[0]) > cuda // 1000:
            return error(f"{text}; {library} needs CUDA {built}", NEWER, driver=version)
    return ok(text, driver=version, cuda=cuda)


def torch_device(_: DoctorConfig) -> Finding:
    """Find the device that training would use, and check that torch has code for it."""
    text = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    values: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    try:
        device = choose_device(Device.auto)
    except ValueError as problem:
        return error(f"{text}: {problem}", NEWER, **values)
    if device.type == "cpu":
        return ok(f"{text}; {NONE}, so the CPU trains", **values)
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    built = torch.cuda.get_arch_list()
    values |= {"name": name, "capability": capability, "count": torch.cuda.device_count()}
    number = ".".join(map(str, capability))
    text += f"; {torch.cuda.device_count()} x {name}, compute capability {number}"
    if not _runs_on(capability, built):
        return error(
            f"{text}, but this torch is built for {', '.join(built)}",
            "install another build: UV_TORCH_BACKEND=... make quickstart",
            **values,
        )
    product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    if float(product.sum()) != 64**3:
        return error(f"{text}; a matrix product is wrong", "have the GPU checked", **values)
    peak = peak_tflops(name)
    return ok(text if peak else f"{text}; peak not known, so mfu is not logged", **values)


def dali(_: DoctorConfig) -> Finding:
    """Import DALI and read the CUDA version it was built for."""
    from nvidia.dali import __version__ as version

    return ok(f"DALI {version}, CUDA {_dali_cuda()}", dali=version, cuda=_dali_cuda())


def triton_compiler(_: DoctorConfig) -> Finding:
    """Compare Triton with the version that torch requires."""
    version = version_of("triton")
    if version is None:
        say = error if torch.cuda.is_available() else warning
        return say("not installed", "install again: make quickstart")
    wanted = [Requirement(text) for text in metadata.requires("torch") or []]
    misfits = [
        str(requirement.specifier)
        for requirement in wanted
        if requirement.name == "triton" and not requirement.specifier.contains(version)
    ]
    if misfits:
        text = f"{version}, but torch {torch.__version__} wants {misfits[0]}"
        return warning(text, f"uv pip install 'triton{misfits[0]}'", triton=version)
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "1":
        text = f"{version}; TRITON_INTERPRET=1 runs kernels in Python, very slowly"
        return warning(text, "unset TRITON_INTERPRET", triton=version)
    return ok(version, triton=version)


def jpeg_engines(_: DoctorConfig) -> Finding:
    """Query nvJPEG for the number of hardware JPEG engines."""
    if not torch.cuda.is_available():
        return ok(NONE)
    listed = [file for name in NVJPEG for file in _files(name)]
    found = [file for file in listed if re.fullmatch(r"libnvjpeg\.so\.\d+", file.name)]
    if not found:
        return warning(f"no libnvjpeg in {' or '.join(NVJPEG)}", "install again: make quickstart")
    library = ctypes.CDLL(str(found[0].locate()))
    handle, engines, per_engine = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    _require(library.nvjpegCreateSimple, ctypes.byref(handle))
    try:
        numbers = ctypes.byref(engines), ctypes.byref(per_engine)
        _require(library.nvjpegGetHardwareDecoderInfo, handle, *numbers)
    finally:
        library.nvjpegDestroy(handle)
    if not engines.value:
        return ok("none: DALI decodes with CUDA kernels", engines=0)
    return ok(f"{engines.value}, {per_engine.value} cores each", engines=engines.value)


def gpu_memory(_: DoctorConfig) -> Finding:
    """Read the free memory of the GPU."""
    if not torch.cuda.is_available():
        return ok(NONE)
    free, total = (number / 1e9 for number in torch.cuda.mem_get_info())
    text, values = f"{free:.1f} of {total:.1f} GB free", {"free_gb": free, "total_gb": total}
    if free < 0.8 * total:
        return warning(text, "nvidia-smi names the processes that hold the rest", **values)
    return ok(text, **values)


def _dali_cuda() -> str:
    """Return the CUDA that DALI was built for: ``12.9``, which it encodes as 12986 for 12.9.86."""
    import nvidia.dali

    digits = str(nvidia.dali.__cuda_version__)
    return f"{digits[:2]}.{digits[2]}"


def _runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Return whether a built target runs: same major version, or PTX of an earlier one."""
    major, minor = capability
    for architecture in built:
        kind, _, number = architecture.partition("_")
        digits = re.match(r"\d+", number)
        if digits is None:
            continue
        of_major, of_minor = divmod(int(digits[0]), 10)
        if kind == "compute" and (of_major, of_minor) <= capability:
            return True
        if kind == "sm" and of_major == major and of_minor <= minor:
            return True
    return False


def _files(package: str) -> list[metadata.PackagePath]:
    try:
        return metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []


def _require(function: Any, *arguments: Any) -> None:
    """Call a function of nvJPEG.

    Raises:
        RuntimeError: If it does not return 0.
    """
    if status := function(*arguments):
        raise RuntimeError(f"{function.__name__} returned {status}")
