"""The sections of the GPU suite, in order of value; add new ones here.

Each takes the ``Suite``, writes rows with ``suite.note``, raises ``CannotRun`` with the reason if
it does not apply, and any other exception if something is wrong.
"""

import ctypes
import functools
import importlib.metadata
import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import losses
from benchmarks.config import LossesBenchConfig
from benchmarks.gpu import loader as gpu_loader
from benchmarks.gpu import training as gpu_training
from benchmarks.gpu.suite import ROOT, CannotRun, Section, Suite, measured, run_python
from benchmarks.harness import append_rows
from benchmarks.store import FRAME_HW, synthetic_jpegs
from train.losses.config import Impl

WARM_BATCHES: Final = 4


def tests_marked_gpu(suite: Suite) -> None:
    """Run the test suite's GPU tests without Triton's interpreter."""
    # Without our pytest settings: they ask for a newer pytest than a GPU machine may have.
    words = ["-m", "pytest", "-c", "/dev/null", "--rootdir", ".", "-p", "no:cacheprovider"]
    words += ["--continue-on-collection-errors", "-m", "gpu", "-q", *files_marked_gpu()]
    done = run_python(suite, words, {}, "pytest-gpu.txt")
    counts = re.findall(r"(\d+) (passed|failed|error|errors|skipped)", done.stdout)
    found = {state: int(number) for number, state in counts}
    for state, number in found.items():
        suite.note(f"pytest -m gpu: {state}", "tests", "tests", float(number))
    if found.get("failed") or found.get("error") or found.get("errors"):
        raise RuntimeError(f"GPU tests failed ({found}); see pytest-gpu.txt")
    if done.returncode not in (0, 5):
        raise RuntimeError(f"pytest ended with {done.returncode}; see pytest-gpu.txt")
    if not suite.on_gpu:
        raise CannotRun(f"no CUDA device: {found.get('skipped', 0)} GPU tests skipped")
    if not found.get("passed"):
        raise RuntimeError(f"no GPU test ran ({found}); see pytest-gpu.txt")


def files_marked_gpu() -> list[str]:
    """Return the test files that hold GPU tests; the others need packages that may be missing."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text()]


def triton_kernel(suite: Suite) -> None:
    """Compile and run one kernel; in the interpreter without a GPU."""
    if suite.on_gpu:
        from benchmarks.gpu.kernel import normalise, worst_error

        error = worst_error("cuda", 1_000_003)
        pixels = torch.randint(0, 256, (1 << 28,), dtype=torch.uint8, device="cuda")
        seconds = measured(suite, lambda: normalise(pixels, 1 / 255, -0.5))
        suite.note("triton normalise", "bandwidth", "GB/s", seconds.rate(pixels.numel() * 5 / 1e9))
    else:
        # The interpreter must be chosen before triton is imported: another process.
        words = ["-m", "benchmarks.gpu.kernel"]
        done = run_python(suite, words, {"TRITON_INTERPRET": "1"}, "triton.txt")
        if done.returncode:
            raise RuntimeError(f"the interpreter failed; see {suite.out / 'triton.txt'}")
        error = float(done.stdout.split()[-1])
    suite.note("triton normalise", "worst error", "1", error)
    if error > 2e-7:  # one rounding of the product, one of the sum, at most 1
        raise RuntimeError(f"the kernel is off by {error}")


def ceilings(suite: Suite) -> None:
    """Measure the device's peak rates: copy and matrix product."""
    size, side = (1 << 31, 8192) if suite.on_gpu else (1 << 24, 256)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=suite.device)
    target = torch.empty_like(source)
    seconds = measured(suite, lambda: target.copy_(source))
    suite.note("device copy", "bandwidth, read + write", "GB/s", seconds.rate(2 * size / 1e9))
    dtype = torch.bfloat16 if suite.on_gpu else torch.float32
    a, b = (torch.randn(side, side, device=suite.device, dtype=dtype) for _ in range(2))
    seconds = measured(suite, lambda: a @ b)
    kind = str(dtype).removeprefix("torch.")
    suite.note(f"matmul {kind} {side}", "arithmetic", "TFLOP/s", seconds.rate(2e-12 * side**3))


def loss_terms(suite: Suite) -> None:
    """Measure the loss terms: eager, compiled, by Triton, in a graph; without waiting."""
    config = LossesBenchConfig(
        compiled=suite.on_gpu,
        batches=[256] if suite.on_gpu else [64],
        results=str(suite.out / "losses.jsonl"),
        min_time_s=1.0 if suite.on_gpu else 0.05,
        repeats=7 if suite.on_gpu else 5,
    )
    rows, bars = losses.measure_losses(config, suite.device)
    append_rows(config.results, rows)
    for bar in bars:
        suite.note(bar.name, "of its rate", bar.unit, bar.measured, at_least=bar.at_least)
    if suite.on_gpu:
        run, batch = losses.step(Impl.triton, suite.device), losses.draw_inputs(64, 0, suite.device)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    missed = [bar.name for bar in bars if not bar.met]
    if missed:
        raise RuntimeError(f"bars missed: {', '.join(missed)}")


def power_and_counters(suite: Suite) -> None:
    """Report whether NVML, and the GPM counters for SM activity, can be read."""
    if not suite.on_gpu:
        raise CannotRun("no CUDA device")
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    used = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    suite.note("NVML utilization readable", "utilization", "%", used)
    suite.note("NVML power", "power", "W", pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
    support = pynvml.nvmlGpmQueryDeviceSupport(handle)
    suite.note("GPM supported", "yes", "bool", float(support.isSupportedDevice))
    if not support.isSupportedDevice:
        return
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    samples = [pynvml.nvmlGpmSampleAlloc() for _ in range(2)]
    pynvml.nvmlGpmSampleGet(handle, samples[0])
    until = time.perf_counter() + 1.0
    while time.perf_counter() < until:
        a @ a
        torch.cuda.synchronize()
    pynvml.nvmlGpmSampleGet(handle, samples[1])
    wanted = {
        "SM active": pynvml.NVML_GPM_METRIC_SM_UTIL,
        "tensor active": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
        "DRAM bandwidth": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
    }
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = len(wanted)
    request.sample1, request.sample2 = samples
    for i, metric in enumerate(wanted.values()):
        request.metrics[i].metricId = metric
    pynvml.nvmlGpmMetricsGet(request)
    for i, name in enumerate(wanted):
        suite.note(f"GPM {name} under matmul", "activity", "%", float(request.metrics[i].value))


def jpeg_engines(suite: Suite) -> None:
    """Query nvJPEG for the number of hardware JPEG engines."""
    if not suite.on_gpu:
        raise CannotRun("no CUDA device")
    files = importlib.metadata.files("nvidia-nvjpeg-cu12") or []
    found = [file for file in files if re.fullmatch(r"libnvjpeg\.so\.\d+", file.name)]
    if not found:
        raise CannotRun("the package nvidia-nvjpeg-cu12 holds no libnvjpeg")
    library = ctypes.CDLL(str(Path(str(found[0].locate()))))
    handle = ctypes.c_void_p()
    if status := library.nvjpegCreateSimple(ctypes.byref(handle)):
        raise RuntimeError(f"nvjpegCreateSimple returned {status}")
    engines, cores = ctypes.c_uint(), ctypes.c_uint()
    status = library.nvjpegGetHardwareDecoderInfo(
        handle, ctypes.byref(engines), ctypes.byref(cores)
    )
    if status:
        raise RuntimeError(f"nvjpegGetHardwareDecoderInfo returned {status}")
    suite.note("NVJPG engines", "engines", "engines", float(engines.value))
    suite.note("NVJPG cores per engine", "cores", "cores", float(cores.value))


def dali_beside_torch(suite: Suite) -> None:
    """Alternate DALI (CUDA 12) and torch (CUDA 13) in this process; both must stay correct."""
    jpegs = _jpegs(suite, 64)
    pipe = _decoder(suite, jpegs, load=0.65)
    a = torch.randn(512, 512, device=suite.device)
    expected = a @ a
    worst = 0.0
    for turn in range(8):
        images = _as_torch(suite, pipe)
        if not torch.equal(a @ a, expected):
            raise RuntimeError("torch gives another product with DALI beside it")
        first = jpegs[turn % len(jpegs)]
        picture = cv2.imdecode(first, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        difference = images[0].cpu().float() - torch.from_numpy(picture).float()
        worst = max(worst, float(difference.abs().mean()))
    suite.note("DALI decode against OpenCV", "mean difference", "grey levels", worst)
    if worst > 1.0:
        raise RuntimeError(f"DALI's decode is off by {worst:.2f} grey levels on average")


def dlpack_lifetime(suite: Suite) -> None:
    """Check that a DLPack transfer is zero-copy and survives later batches."""
    pipe = _decoder(suite, _jpegs(suite, 64), load=0.65)
    output = _run(suite, pipe)
    images = torch.from_dlpack(output)
    shared = images.data_ptr() == output.data_ptr()
    before = images.clone()
    later = [_as_torch(suite, pipe).clone() for _ in range(12)]
    kept = torch.equal(images, before)
    if torch.equal(later[0], before):
        raise RuntimeError("two batches are equal, so an overwritten one would not show")
    suite.note("DLPack hand-over is zero-copy", "yes", "bool", float(shared))
    suite.note("DLPack tensor unchanged after 12 batches", "yes", "bool", float(kept))
    if not kept:
        raise RuntimeError("a later batch overwrote a tensor that was handed over")
    if not shared:
        raise RuntimeError("the hand-over copied the batch")


def decode_rate(suite: Suite) -> None:
    """Measure mixed decoding by hardware decoder load and batch size."""
    loads = (0.0, 0.65, 0.9) if suite.on_gpu else (0.65,)
    sizes = (64, 128, 256) if suite.on_gpu else (16,)
    for load, size in itertools.product(loads, sizes):
        pipe = _decoder(suite, _jpegs(suite, size), load=load)
        seconds = _timed(suite, functools.partial(_run, suite, pipe))
        suite.note("DALI decode 640x480", "decode", "images/s", size / seconds, load=load, b=size)


def _section(run: Callable[[Suite], None], expected_s: float, cap_s: float) -> Section:
    return Section(name=run.__name__, run=run, expected_s=expected_s, cap_s=cap_s)


def _training(recipe: str, kind: str, expected_s: float, cap_s: float) -> Section:
    run = functools.partial(gpu_training.training_run, recipe=recipe, kind=kind)
    return Section(name=f"{recipe}_{kind}", run=run, expected_s=expected_s, cap_s=cap_s)


SECTIONS: Final = (
    _section(dali_beside_torch, 12, 40),
    _section(dlpack_lifetime, 4, 20),
    _section(ceilings, 8, 20),
    _section(gpu_loader.fill_and_stream, 67, 110),
    _section(gpu_loader.gather_alone, 10, 30),
    _section(gpu_loader.data_share_of_a_step, 20, 45),
    _training("freihand_resnet50", "loop", 70, 120),
    _training("freihand_resnet50", "probe", 25, 60),
    _training("freihand_vits", "loop", 65, 120),
    _training("freihand_vits", "probe", 25, 60),
    _training("freihand_resnet50", "graph", 25, 60),
    _training("freihand_vits", "graph", 25, 60),
    _section(gpu_training.training_by_dataloader, 45, 70),
    _section(power_and_counters, 4, 15),
    _section(jpeg_engines, 1, 10),
    _section(triton_kernel, 8, 25),
    _section(decode_rate, 25, 45),
    _section(gpu_loader.capacity_beside_vit_large, 30, 60),
    _section(gpu_training.sample_stores, 65, 120),
    *(_training("arctic_baseline", kind, 50, 120) for kind in gpu_training.KINDS),
    _section(tests_marked_gpu, 220, 290),
    _section(loss_terms, 60, 100),
)


def _jpegs(suite: Suite, count: int) -> list[NDArray[np.uint8]]:
    """Return encoded frames of one size, all different."""
    frames = synthetic_jpegs(64 if suite.on_gpu else 4, seed=0)
    return [np.frombuffer(frames[i % len(frames)], np.uint8) for i in range(count)]


def _decoder(suite: Suite, jpegs: list[NDArray[np.uint8]], load: float) -> Any:
    """Return a built pipeline that decodes the same batch again and again."""
    from nvidia.dali import Pipeline, fn, types

    pipe = Pipeline(
        batch_size=len(jpegs),
        num_threads=8 if suite.on_gpu else 2,
        device_id=0 if suite.on_gpu else None,
        prefetch_queue_depth=2,
    )
    options: dict[str, Any] = {}
    if suite.on_gpu:
        options = {
            "hw_decoder_load": load,
            "preallocate_width_hint": FRAME_HW[1],
            "preallocate_height_hint": FRAME_HW[0],
        }
    with pipe:
        encoded = fn.external_source(
            source=_rotated(jpegs), batch=True, no_copy=True, dtype=types.UINT8, ndim=1
        )
        device = "mixed" if suite.on_gpu else "cpu"
        images = fn.decoders.image(
            encoded, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True, **options
        )
        pipe.set_outputs(images)
    pipe.build()
    return pipe


def _rotated(jpegs: list[NDArray[np.uint8]]) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield the same images in another order each time, so that an overwritten batch shows."""
    for turn in itertools.count():
        start = turn % len(jpegs)
        yield jpegs[start:] + jpegs[:start]


def _run(suite: Suite, pipe: Any) -> Any:
    stream = torch.cuda.current_stream() if suite.on_gpu else None
    return pipe.run(stream)[0].as_tensor()


def _as_torch(suite: Suite, pipe: Any) -> torch.Tensor:
    return torch.from_dlpack(_run(suite, pipe))


def _timed(suite: Suite, batch: Callable[[], object]) -> float:
    """Return the seconds per batch of a pipeline that reads ahead: wall time over many batches."""
    for _ in range(WARM_BATCHES):
        batch()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < (2.0 if suite.on_gpu else 0.2):
        batch()
        done += 1
    if suite.on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / done
