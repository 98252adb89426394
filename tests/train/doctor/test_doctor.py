"""What the doctor finds on this machine, and on machines that the tests make up."""

import ctypes
import json
import os
import shutil
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest
import torch

from pipeline.app import machine as app_machine
from pipeline.decode.codec import Codec
from pipeline.gather import cpu as gather_native
from pipeline.gather.select import gather
from pipeline.labels import prepare as prepare_module
from tests.conftest import SampleStore
from train.__main__ import COMMANDS
from train.doctor import data as doctor_data
from train.doctor import doctor
from train.doctor import gpu as doctor_gpu
from train.doctor import losses as doctor_losses
from train.doctor import machine as doctor_machine
from train.doctor import packages as doctor_packages
from train.doctor import parity as doctor_parity
from train.doctor.config import DoctorConfig
from train.doctor.doctor import run_checks
from train.doctor.finding import Finding, Verdict, ok
from train.losses import groups
from train.losses.config import Impl

CPU = torch.device("cpu")
NOTHING = DoctorConfig()


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose torch sees an H200."""
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_name": "NVIDIA H200",
        "get_device_capability": (9, 0),
        "get_arch_list": ["sm_80", "sm_90"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(doctor_gpu, "choose_device", lambda _: SimpleNamespace(type="cuda"))
    on_host = partial(torch.ones, device="cpu")

    def ones(*size: int, device: object) -> torch.Tensor:
        del device
        return on_host(*size)

    monkeypatch.setattr(torch, "ones", ones)


# --- the command ----------------------------------------------------------------------------------


def test_this_machine_is_checked_as_a_whole(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "doctor.json"
    config = DoctorConfig(store=str(freihand.store), mano=str(freihand.mano), out=str(out))
    assert doctor.main(config) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    rows = {row["check"]: row for row in json.loads(out.read_text())}
    assert list(rows) == [name for name, _ in doctor.CHECKS]
    assert all(name in shown for name in rows)
    assert rows["packages"]["values"]["versions"]["torch"] in torch.__version__
    counts = rows["store"]["values"]["splits"]
    assert (counts["all"], counts["train"], counts["evaluation"]) == (72, 64, 8)
    assert len(rows["MANO"]["values"]["sha256"]) == 64
    assert rows["gather kernel"]["values"]["worst"] <= doctor_parity.TOLERANCE
    assert all(bool(row["cure"]) == (row["verdict"] != "ok") for row in rows.values())


@pytest.mark.gpu
def test_a_gpu_machine_is_well(freihand: SampleStore) -> None:
    config = DoctorConfig(store=str(freihand.store), mano=str(freihand.mano))
    findings = dict(run_checks(doctor.CHECKS, config))
    # Such a machine may lack packages of the build, and nothing else.
    assert {name for name, f in findings.items() if f.verdict is Verdict.error} <= {"packages"}
    assert "Triton on cuda" in findings["gather kernel"].found
    assert "Triton on cuda" in findings["prepare kernel"].found
    assert "Triton on cuda" in findings["loss kernels"].found
    assert "engines" in findings["JPEG engines"].values
    assert findings["driver"].values["driver"]


def test_a_check_that_crashes_is_an_error_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def crashes(_: DoctorConfig) -> Finding:
        raise RuntimeError("[bold]out of\norder")

    def refuses(_: DoctorConfig) -> Finding:
        raise ValueError("use another")

    fake = SimpleNamespace(crashes=crashes, refuses=refuses, fine=lambda _: ok("all [is] well"))
    monkeypatch.setitem(sys.modules, "train.fake_checks", fake)
    checks = (
        ("first", "train.fake_checks:crashes"),
        ("second", "train.no_such_module:f"),
        ("third", "train.fake_checks:refuses"),
        ("fourth", "train.fake_checks:fine"),
    )
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert doctor.main(DoctorConfig(out=str(tmp_path / "d.json"))) == 1
    first, second, third, fourth = json.loads((tmp_path / "d.json").read_text())
    assert first["found"] == "RuntimeError: [bold]out of order"
    assert "report this" in first["cure"]
    assert "ModuleNotFoundError" in second["found"]
    assert "make quickstart" in second["cure"]
    assert third["found"] == "ValueError: use another"
    assert [row["verdict"] for row in (first, second, third, fourth)] == [*["error"] * 3, "ok"]
    assert "all [is] well" in capsys.readouterr().out


def test_warnings_alone_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)
    monkeypatch.setattr(doctor, "CHECKS", (("MANO", "train.doctor.data:mano"),))
    assert doctor_data.mano(NOTHING).verdict is Verdict.warning
    assert doctor.main(NOTHING) == 0


def test_the_command_is_registered() -> None:
    (command,) = (command for command in COMMANDS if command.name == "doctor")
    assert (command.module, command.config) == (
        "train.doctor.doctor",
        "train.doctor.config:DoctorConfig",
    )


# --- packages, processor, memory ------------------------------------------------------------------


def test_packages_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy>=99", "no-such-package>=1", "scipy>=1", "never>=1; python_version < '3'"]
    monkeypatch.setattr(doctor_packages, "_declared", lambda: declared)
    finding = doctor_packages.packages(NOTHING)
    assert finding.verdict is Verdict.error
    assert finding.found == f"numpy {np.__version__} is not >=99; no-such-package is missing"


def test_quotas_of_the_container_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(app_machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert doctor_machine.cores(NOTHING).verdict is Verdict.ok
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert doctor_machine.cores(NOTHING).verdict is Verdict.warning

    (tmp_path / "memory.max").write_text(str(4 * 10**9))
    (tmp_path / "memory.current").write_text(str(3 * 10**9))
    finding = doctor_machine.host_memory(NOTHING)
    assert finding.verdict is Verdict.ok
    assert finding.values == {"available_gb": 1.0, "total_gb": 4.0}
    (tmp_path / "memory.current").write_text(str(39 * 10**8))
    assert doctor_machine.host_memory(NOTHING).verdict is Verdict.warning


@pytest.mark.parametrize(
    ("cores", "load", "policy", "words"),
    [
        (16, 1.0, None, ()),
        (16, 9.0, None, ("OMP_WAIT_POLICY=PASSIVE",)),
        (16, 9.0, "PASSIVE", ()),
        (1.5, 0.0, None, ("threads=1:",)),
        (1.5, 9.0, "ACTIVE", ("threads=1:", "OMP_WAIT_POLICY=PASSIVE")),
    ],
)
def test_threads_are_compared_with_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    cores: float,
    load: float,
    policy: str | None,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr(doctor_machine, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    finding = doctor_machine.threads(NOTHING)
    assert finding.verdict is (Verdict.warning if words else Verdict.ok)
    assert all(word in finding.cure for word in words)
    assert finding.cure.count(";") == max(0, len(words) - 1)


def test_a_missing_compiler_matters_more_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for there, verdict in ((True, Verdict.error), (False, Verdict.warning)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert doctor_machine.compiler(NOTHING).verdict is verdict


def test_a_compiler_that_is_turned_off_or_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_native, "available", lambda: False)
    assert "does not build" in doctor_machine.compiler(NOTHING).found
    monkeypatch.setenv(gather_native.SWITCH, "0")
    assert doctor_machine.compiler(NOTHING).cure == f"unset {gather_native.SWITCH}"


# --- store, disk, MANO ----------------------------------------------------------------------------


def test_a_damaged_store_and_missing_mano_are_errors(freihand: SampleStore, tmp_path: Path) -> None:
    config = DoctorConfig(store=str(tmp_path), mano=str(tmp_path))
    checks = [(name, place) for name, place in doctor.CHECKS if name in ("store", "disk", "MANO")]
    for _, finding in run_checks(checks, config):
        assert finding.verdict is Verdict.error
        assert str(tmp_path) in finding.found


@pytest.mark.parametrize(
    ("seconds", "from_disk", "verdict", "words"),
    [
        (0.1, 1.0, Verdict.ok, "0.20 GB/s cold (100% came from the disk)"),
        (1.0, 0.9, Verdict.warning, "0.02 GB/s cold (90% came from the disk)"),
        (1.0, 0.0, Verdict.ok, "cold not measured"),
    ],
)
def test_a_rate_is_cold_only_if_a_disk_was_read(
    freihand: SampleStore,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    from_disk: float,
    verdict: Verdict,
    words: str,
) -> None:
    size = 20 * 10**6
    read = iter([(size / 1e9 / seconds, size), (5.0, size)])
    told = iter([0, int(from_disk * size)])
    monkeypatch.setattr(doctor_data, "_read", lambda _: next(read))
    monkeypatch.setattr(doctor_data, "_bytes_from_storage", lambda: next(told))
    finding = doctor_data.disk(DoctorConfig(store=str(freihand.store)))
    assert finding.verdict is verdict
    assert words in finding.found
    assert "5.00 GB/s warm" in finding.found


def test_the_disk_check_reads_every_shard_but_not_without_end(
    freihand: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DoctorConfig(store=str(freihand.store))
    finding = doctor_data.disk(config)
    files = (freihand.store / "image" / "bytes" / "c").iterdir()
    total = sum(file.stat().st_size for file in files)
    assert finding.values["bytes_read"] == total
    assert "too few to measure" in finding.found
    monkeypatch.setattr(doctor_data, "READ_BYTES", 1000)
    monkeypatch.setattr(doctor_data, "BLOCK_BYTES", 600)
    assert doctor_data.disk(config).values["bytes_read"] == 1200


# --- kernels --------------------------------------------------------------------------------------


def test_kernels_equal_their_references_here() -> None:
    assert gather_native.available()
    assert "machine code" in doctor_parity.gather_kernel(NOTHING).found
    for check in (doctor_parity.prepare_kernel, doctor_losses.loss_kernels):
        finding = check(NOTHING)  # tests run with the interpreter
        assert finding.verdict is Verdict.ok
        assert "interpreted" in finding.found


def test_without_a_kernel_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_native, "available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernels = (doctor_parity.gather_kernel, doctor_parity.prepare_kernel)
    for check in (*kernels, doctor_losses.loss_kernels):
        finding = check(NOTHING)
        assert finding.verdict is Verdict.ok
        assert "reference itself" in finding.found


@pytest.mark.parametrize("codec", list(Codec))
def test_one_wrong_grey_level_is_found(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    right = gather

    def wrong(*args: Any) -> torch.Tensor:
        image = right(*args)
        image[2, 1, 3, 4] += 1 / 255
        return image

    assert doctor_parity.gather_error(codec, CPU) < doctor_parity.TOLERANCE
    monkeypatch.setattr(doctor_parity, "gather", wrong)
    assert doctor_parity.gather_error(codec, CPU) > doctor_parity.TOLERANCE
    assert doctor_parity.gather_kernel(NOTHING).verdict is Verdict.error


@pytest.mark.parametrize(
    ("table", "column"), [(0, "taps"), (0, "A_q16"), (1, "is_right"), (1, "theta_rotmat"), (1, "K")]
)
def test_one_wrong_label_is_found(monkeypatch: pytest.MonkeyPatch, table: int, column: str) -> None:
    from pipeline.labels import prepare_triton

    monkeypatch.setattr(prepare_triton, "prepare", prepare_module.prepare_eager)
    assert doctor_parity.prepare_error(CPU) == 0

    def wrong(*args: Any) -> Any:
        made = prepare_module.prepare_eager(*args)
        first = getattr(made[table], column)[0].view(-1)
        first[0] = ~first[0] if first.dtype is torch.bool else first[0] + 2
        return made

    monkeypatch.setattr(prepare_triton, "prepare", wrong)
    assert doctor_parity.prepare_error(CPU) > doctor_parity.TOLERANCE


def test_one_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = groups.rotation_losses

    def wrong(inputs: Any, names: Any, lam: torch.Tensor, impl: Impl) -> Any:
        return right(inputs, names, lam * (1.01 if impl is Impl.triton else 1.0), impl)

    assert doctor_losses.loss_error(CPU) < doctor_parity.TOLERANCE
    monkeypatch.setattr(doctor_losses, "rotation_losses", wrong)
    assert doctor_losses.loss_error(CPU) > doctor_parity.TOLERANCE


def test_a_nan_of_one_side_is_a_difference() -> None:
    nan = torch.tensor([1.0, torch.nan])
    assert doctor_parity.difference(nan, nan.clone()) == 0
    assert doctor_parity.difference(nan, torch.ones(2)) == float("inf")
    assert doctor_parity.difference(torch.ones(2), nan) == float("inf")


# --- GPU ------------------------------------------------------------------------------------------


def driver_of(patch: pytest.MonkeyPatch, cuda: int) -> None:
    patch.setattr(pynvml, "nvmlInit", lambda: None)
    patch.setattr(pynvml, "nvmlShutdown", lambda: None)
    patch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.65.06")
    patch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", lambda: cuda)


def test_a_driver_must_know_the_cuda_of_torch_and_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor_gpu, "_dali_cuda", lambda: "12.9")
    driver_of(monkeypatch, 13000)
    finding = doctor_gpu.driver(NOTHING)
    assert (finding.verdict, finding.found) == (Verdict.ok, "580.65.06, CUDA up to 13.0")
    driver_of(monkeypatch, 12080)
    finding = doctor_gpu.driver(NOTHING)
    assert finding.verdict is Verdict.error
    assert "CUDA up to 12.8; torch needs CUDA 13.0" in finding.found
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor_gpu.driver(NOTHING).verdict is Verdict.ok


def test_a_gpu_without_a_driver_is_an_error_and_none_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    for folder, verdict in ((tmp_path, Verdict.error), (tmp_path / "none", Verdict.ok)):
        monkeypatch.setattr(doctor_gpu, "GPUS", folder)
        assert doctor_gpu.driver(NOTHING).verdict is verdict


@pytest.mark.usefixtures("a_gpu")
def test_the_gpu_is_named_with_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor_gpu.torch_device(NOTHING)
    assert finding.verdict is Verdict.ok
    assert "2 x NVIDIA H200, compute capability 9.0" in finding.found
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA T4")
    assert "mfu is not logged" in doctor_gpu.torch_device(NOTHING).found


def test_a_gpu_that_torch_cannot_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: object) -> torch.device:
        raise ValueError("this machine has an NVIDIA GPU, but")

    monkeypatch.setattr(doctor_gpu, "choose_device", refuses)
    finding = doctor_gpu.torch_device(NOTHING)
    assert finding.verdict is Verdict.error
    assert "this machine has an NVIDIA GPU" in finding.found


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    ("capability", "built", "verdict"),
    [
        ((8, 6), ["sm_80", "sm_90"], Verdict.ok),
        ((7, 5), ["sm_80", "sm_90"], Verdict.error),
        ((8, 0), ["sm_86"], Verdict.error),
        ((9, 0), ["sm_90a"], Verdict.ok),
        ((12, 0), ["sm_90"], Verdict.error),
        ((12, 0), ["sm_90", "compute_90"], Verdict.ok),
        ((10, 0), ["sm_100"], Verdict.ok),
    ],
)
def test_torch_must_have_code_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], verdict: Verdict
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    finding = doctor_gpu.torch_device(NOTHING)
    assert finding.verdict is verdict


@pytest.mark.usefixtures("a_gpu")
def test_memory_of_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, verdict in ((139, Verdict.ok), (70, Verdict.warning)):
        numbers = (free * 10**9, 140 * 10**9)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda numbers=numbers: numbers)
        assert doctor_gpu.gpu_memory(NOTHING).verdict is verdict


class FakeNvjpeg:
    def __init__(self, engines: int, status: int) -> None:
        self.engines, self.status, self.open = engines, status, 0

    def nvjpegCreateSimple(self, _: Any) -> int:  # noqa: N802  # nvJPEG's names
        self.open += 1
        return 0

    def nvjpegDestroy(self, _: Any) -> int:  # noqa: N802
        self.open -= 1
        return 0

    def nvjpegGetHardwareDecoderInfo(self, _: Any, engines: Any, cores: Any) -> int:  # noqa: N802
        engines._obj.value, cores._obj.value = self.engines, 2
        return self.status


@pytest.mark.usefixtures("a_gpu")
def test_jpeg_engines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    file = SimpleNamespace(name="libnvjpeg.so.12", locate=lambda: "libnvjpeg.so.12")
    monkeypatch.setattr(doctor_gpu, "_files", lambda name: [file])
    library = FakeNvjpeg(7, 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert doctor_gpu.jpeg_engines(NOTHING).found == "7, 2 cores each"
    library.engines = 0
    assert "none" in doctor_gpu.jpeg_engines(NOTHING).found
    library.status = 3
    with pytest.raises(RuntimeError, match="nvjpegGetHardwareDecoderInfo returned 3"):
        doctor_gpu.jpeg_engines(NOTHING)
    assert library.open == 0
    monkeypatch.setattr(doctor_gpu, "_files", lambda name: [])
    assert doctor_gpu.jpeg_engines(NOTHING).verdict is Verdict.warning


@pytest.mark.usefixtures("a_gpu")
def test_triton_is_the_one_that_torch_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    wanted = ["triton==3.9.9; platform_system == 'Linux'", "numpy"]
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    for version, verdict in (
        ("3.9.9", Verdict.ok),
        ("3.7.1", Verdict.warning),
        (None, Verdict.error),
    ):
        monkeypatch.setattr(doctor_gpu, "version_of", lambda _, version=version: version)
        assert doctor_gpu.triton_compiler(NOTHING).verdict is verdict
    monkeypatch.setattr(doctor_gpu, "version_of", lambda _: "3.9.9")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "very slowly" in doctor_gpu.triton_compiler(NOTHING).found
