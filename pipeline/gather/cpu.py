"""The gather on a CPU as machine code; formulas: ``pipeline.gather.reference``.

``cpu.c`` is compiled once per processor with the system's C compiler, as Triton does with its
launchers, and stored in the user's cache folder; a damaged one is compiled again. Without a
compiler, which the log names with what to do, or with ``HANDLOOM_NATIVE=0``, the reference runs
instead, six times slower.

Torch's own operations pass every pixel some sixty times through memory; Inductor is no faster,
since it reads bytes at computed addresses one by one with a bounds check each.
"""

import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pipeline.app.compiler import FIX, cache_folder, compilers
from pipeline.decode.codec import Codec, Pixels
from pipeline.gather.params import GatherParams, InputFormat, prepare_output
from pipeline.host_pool import HostPool

log = logging.getLogger(__name__)
SOURCE: Final = Path(__file__).with_suffix(".c")
OPTIONS: Final = (
    *("-O3", "-march=native", "-std=c11", "-shared", "-fPIC"),
    "-fwrapv",  # integers as in the formulas
    "-ffp-contract=off",  # floats rounded as the reference rounds them
)
SWITCH: Final = "HANDLOOM_NATIVE"
COMPILE_LIMIT_S: Final = 60
SEAL_BYTES: Final = 32
_SCRATCH: Final = HostPool()


class _Gather(ctypes.Structure):
    """The struct of the same name in the source."""

    _fields_ = (
        ("plane", ctypes.c_void_p * 2),
        *((name, ctypes.c_void_p) for name in ("index", "A_q16", "erase_xyxy", "taps", "colour")),
        *((name, ctypes.c_float * 3) for name in ("scale", "black", "white")),
        ("out", ctypes.c_void_p),
        *((f"{name}_stride", ctypes.c_int64) for name in ("sample", "channel", "row", "pixel")),
        *(
            (name, ctypes.c_int32)
            for name in ("side", "size", "frames", "colour_stride", "is_yuv420", "is_uint8")
        ),
    )


def gather(
    pixels: Pixels,
    index: Int64[Tensor, "*b"],
    params: GatherParams,
    form: InputFormat,
    *,
    out: Tensor | None = None,
) -> Float[Tensor, "*b 3 s s"] | UInt8[Tensor, "*b 3 s s"]:
    """Compute ``gather_eager`` with machine code in torch's number of threads.

    Raises:
        ValueError: If shapes do not match, or an index is out of the cache's range.
    """
    image = prepare_output(index, params, form, pixels.device, out)
    num = index.numel()
    if not num:
        return image
    if int(index.min()) < 0 or int(index.max()) >= len(pixels):
        raise ValueError(f"the gather's index must lie in 0..{len(pixels) - 1}")
    flat = image.view(-1, *image.shape[-3:])
    direct = form.dtype in (torch.float32, torch.uint8)
    target = flat if direct else _SCRATCH.empty(tuple(flat.shape), torch.float32)
    planes = pixels.planes()
    kept = [  # alive during the call, dense
        index.contiguous(),
        params.A_q16.contiguous(),
        params.erase_xyxy.contiguous(),
        params.taps.contiguous(),
        params.colour.reshape(-1, 12).contiguous(),
    ]
    levels = zip(*form.scale_black_white(), strict=True)
    call = _Gather(
        (ctypes.c_void_p * 2)(planes[0].data_ptr(), planes[-1].data_ptr()),
        *(tensor.data_ptr() for tensor in kept),
        *((ctypes.c_float * 3)(*values) for values in levels),
        target.data_ptr(),
        *target.stride(),
        pixels.size_px,
        form.size_px,
        num // params.taps.numel(),
        12,
        pixels.codec is Codec.yuv420,
        form.dtype is torch.uint8,
    )
    _in_threads(call, num)
    if not direct:
        flat.copy_(target)
    return image


@functools.cache
def available() -> bool:
    """Return whether there is machine code for this processor; logs once why not."""
    if os.environ.get(SWITCH) == "0":
        return False
    try:
        _library()
    except OSError as error:
        log.warning(
            "the gather runs on the CPU in plain torch, which is six times slower (%s): %s",
            error,
            FIX,
        )
        return False
    return True


def _in_threads(call: _Gather, num: int) -> None:
    threads = min(num, torch.get_num_threads())
    library = _library()
    edges = [num * i // threads for i in range(threads + 1)]
    parts = list(itertools.pairwise(edges))
    waiting = [
        _pool(threads).submit(library.gather, ctypes.byref(call), *part) for part in parts[1:]
    ]
    library.gather(ctypes.byref(call), *parts[0])
    for future in waiting:
        future.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "gather")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


@functools.cache
def _library() -> Any:
    """Return the compiled library, from the cache folder if it was compiled before.

    Compiled in a temporary folder where that one cannot be written or run from.

    Raises:
        OSError: If there is no compiler, or none compiles it; says what each answered.
    """
    found = compilers()
    if not found:
        raise OSError("found no C compiler (cc, gcc, clang, or in CC)")
    problems = []
    for compiler in found:
        try:
            return _loaded(compiler)
        except (OSError, subprocess.SubprocessError) as error:
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
            problems.append(f"{shlex.join(compiler)}: {' '.join((said or str(error)).split())}")
            if compiler is not found[-1]:
                log.warning("the gather is not compiled by %s; the next one is tried", problems[-1])
    raise OSError("; ".join(problems))


def _loaded(compiler: list[str]) -> Any:
    """Return the library of a compiler, compiled if the cached one is absent or damaged.

    Raises:
        OSError: If it cannot be started, or what it compiled cannot be loaded.
        subprocess.SubprocessError: If it does not compile.
    """
    key = "\n".join((SOURCE.read_text(encoding="utf-8"), *OPTIONS, *compiler, _processor()))
    name = f"gather-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        path = cache_folder() / name
        if not _is_whole(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
                _compiled(compiler, Path(temporary) / name).replace(path)  # atomic
        return _opened(path)
    except (OSError, RuntimeError) as error:  # read-only, full, mounted noexec, or no home
        log.info("the gather is compiled for this process alone: %s", error)
    with tempfile.TemporaryDirectory() as temporary:
        return _opened(_compiled(compiler, Path(temporary) / name))


def _compiled(compiler: list[str], path: Path) -> Path:
    """Compile the source and seal the library: its sha256 follows, which the loader ignores."""
    words = [*compiler, *OPTIONS, "-o", str(path), str(SOURCE)]
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
    data = path.read_bytes()
    if not data:
        raise OSError("it wrote an empty library")
    path.write_bytes(data + hashlib.sha256(data).digest())
    return path


def _is_whole(path: Path) -> bool:
    """Return whether a cached library is as it was written: a torn one may kill the process."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    return (
        len(data) > SEAL_BYTES and data[-SEAL_BYTES:] == hashlib.sha256(data[:-SEAL_BYTES]).digest()
    )


def _opened(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    library.gather.argtypes = (ctypes.POINTER(_Gather), ctypes.c_int32, ctypes.c_int32)
    library.gather.restype = None
    return library


def _processor() -> str:
    """Return a key of what ``-march=native`` depends on: machines may share a home folder."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    model = next((line for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()}\n{model}\n{flags}"
