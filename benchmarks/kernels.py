"""Register usage of every Triton kernel on every target GPU; needs no GPU.

    python -m benchmarks kernels

Compiles to machine code as a launch would, with the ptxas in Triton's wheel, and reads the resource
usage with its cuobjdump. Memory on the thread's stack means register spilling. For the gather it
also counts the memory sectors of a load and of a store, from the layout of the compiled code.

``python -m benchmarks.kernels 80 90`` prints the same of these targets as JSON, a few variants
only, for the tests: they run in Triton's interpreter, which cannot compile, so it takes another
process.
"""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.coalescing import (
    lanes_of,
    loads_layout,
    sectors_per_load,
    sectors_per_store,
)
from benchmarks.config import KernelsBenchConfig
from benchmarks.harness import Bar, Measurement, append_rows, print_bars, record

TARGETS: Final = (80, 86, 89, 90, 100, 120)
"""Compute capabilities: A100, RTX 30, RTX 40, H100 and H200, B200, RTX 50."""
WARP: Final = 32
ARCH_SPECIFIC: Final = 90
"""From this capability on, Triton compiles architecture-specific code: sm_90a."""
MAX_SPILLED: Final = 16
"""Bytes per thread that a kernel may spill: Triton 3.6 spills 8 in a mesh kernel."""
MAX_SECTORS: Final = 8.0
"""Memory sectors that a load of one byte per lane of the gather may touch, on average."""
MAX_STORE_SECTORS: Final = 12.0
"""The same of a store: float32, channels last, fills 12 sectors in three stores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One specialisation of a kernel."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    """Triton's type of each argument; those left out are 32-bit integers."""
    constants: Mapping[str, int | bool | None]
    num_warps: int
    options: Mapping[str, bool | int] = field(default_factory=dict)
    """Further compiler options of a launch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """Resource usage of a variant on a target."""

    variant: str
    target: str
    registers: int
    spilled_bytes: int
    """Stack and local memory per thread, bytes."""
    shared_bytes: int
    load_sectors: float | None = None
    """Mean number of 32-byte sectors of a warp's load of one byte per pixel; the gather only."""
    store_sectors: float | None = None
    """The same of a store of one channel of a 224 px input."""


def main(config: KernelsBenchConfig) -> int:
    """Compile, append the rows and print them; return 1 if a kernel spills or loads scattered."""
    builds = compile_all(variants())
    rows = [
        record(
            "kernels",
            build.variant,
            build.target,
            "registers",
            Measurement(p20=build.registers, p50=build.registers, p80=build.registers, n=1),
            params={"spilled_bytes": build.spilled_bytes, "shared_bytes": build.shared_bytes},
            config=dataclasses.asdict(config),
        )
        for build in builds
    ]
    rows += [
        record(
            "kernels",
            build.variant,
            f"{build.target}, {what}",
            "sectors",
            Measurement(p20=sectors, p50=sectors, p80=sectors, n=1),
            config=dataclasses.asdict(config),
        )
        for build in builds
        for what, sectors in (
            ("load of a byte", build.load_sectors),
            ("store of a channel", build.store_sectors),
        )
        if sectors is not None
    ]
    append_rows(config.results, rows)
    print_registers(builds)
    clean = sum(build.spilled_bytes <= MAX_SPILLED for build in builds)
    gathers = [build for build in builds if build.load_sectors is not None]
    coalesced = sum(is_coalesced(build) for build in gathers)
    bars = [
        Bar(name="kernels without spills", measured=clean, at_least=len(builds), unit="builds"),
        Bar(name="gathers coalesced", measured=coalesced, at_least=len(gathers), unit="builds"),
    ]
    return 0 if print_bars(bars) else 1


def is_coalesced(build: Build) -> bool:
    """Return whether a build of the gather uses few sectors and no shared memory."""
    loads, stores = build.load_sectors or 0.0, build.store_sectors or 0.0
    return loads <= MAX_SECTORS and stores <= MAX_STORE_SECTORS and build.shared_bytes == 0


def print_registers(builds: list[Build]) -> None:
    """Print registers per thread, a kernel per line and a target per column."""
    targets = list(dict.fromkeys(build.target for build in builds))
    table = Table("registers per thread", *targets)
    registers = {(build.variant, build.target): build.registers for build in builds}
    for name in dict.fromkeys(build.variant for build in builds):
        table.add_row(name, *(str(registers.get((name, target), "")) for target in targets))
    Console().print(table)


def variants() -> list[Variant]:
    """Return every specialisation that a configuration can require."""
    layouts = itertools.product((False, True), (False, True), _TYPES)
    windows = itertools.product((False, True), (False,), ("bf16",))
    prepared = itertools.product((1, 2), (False, True), (False, True), (False, True))
    return [
        *gather_variants(layouts),
        *gather_variants(windows, shared=True),
        *prepare_variants(how for how in prepared if how[:2] != (2, True)),
        *loss_variants(itertools.product((1, 2), ("fp32", "bf16")), all_kinds=True),
    ]


def few_variants() -> list[Variant]:
    """Return a small subset for tests that covers every codec, layout and type."""
    chosen = [(False, False, "fp16"), (False, True, "fp32"), (True, True, "bf16")]
    return [
        *gather_variants(chosen),
        *gather_variants([(True, False, "bf16")], shared=True),
        *prepare_variants([(1, True, True, False), (2, False, True, True)]),
        *loss_variants([(1, "fp32"), (2, "bf16")], all_kinds=False),
    ]


_TYPES: Final = ("fp32", "bf16", "fp16", "u8")


def gather_variants(
    choices: Iterable[tuple[bool, bool, str]], *, shared: bool = False
) -> Iterator[Variant]:
    """Yield the gather for each (is yuv420, is channels-last, output type).

    ``shared``: the frames of a window share their parameters.
    """
    from pipeline.gather.triton import BLOCK_U, BLOCK_V, NUM_WARPS, gather_kernel

    levels = [f"{what}_{channel}" for channel in "rgb" for what in ("scale", "black", "white")]
    for yuv420, channels_last, dtype in choices:
        codec, layout = "yuv420" if yuv420 else "rgb", "nhwc" if channels_last else "nchw"
        yield Variant(
            name=f"gather {codec} {layout} {dtype}" + " windows" * shared,
            kernel=gather_kernel,
            types={
                "first_plane": "*u8",
                "second_plane": "*u16" if yuv420 else "*u8",
                "index": "*i64",
                "A_q16": "*i32",
                "colour": "*fp32",
                "erase_xyxy": "*i32",
                "taps": "*i32",
                "out": f"*{dtype}",
                **dict.fromkeys(levels, "fp32"),
            },
            constants={
                **({} if shared else {"frames": 1}),
                "YUV420": yuv420,
                "CHANNELS_LAST": channels_last,
                "BLOCK_U": BLOCK_U,
                "BLOCK_V": BLOCK_V,
            },
            num_warps=NUM_WARPS,
        )


_PREPARED: Final = {
    **dict.fromkeys(("index", "epoch", "sample_id", "joint_set"), "*i64"),
    **dict.fromkeys(("center_px", "size_px", "A_cache_from_frame"), "*fp64"),
    **dict.fromkeys(("A_q16", "erase_xyxy", "taps"), "*i32"),
    **dict.fromkeys(("has_joints", "has_mano", "has_beta", "joint_valid"), "*u1"),
    **dict.fromkeys(("is_right", "mirrored", "is_real"), "*u1"),
    "seed": "i64",
    "frames": "i32",
    "input_px": "i32",
}
"""Types of the preparation's arguments that are neither float32 tensors nor ranges."""


def prepare_variants(choices: Iterable[tuple[int, bool, bool, bool]]) -> Iterator[Variant]:
    """Yield the label preparation for each (hands, mirrors left hands, augments, masks frames)."""
    from pipeline.labels.prepare_triton import NUM_WARPS, OPTIONS, RANGES, prepare_kernel

    for hands, mirror, augments, hides in choices:
        words = ("mirrored" * mirror, "augmented" * augments, "windows" * hides)
        absent = {"epoch": augments, "is_real": hides}
        yield Variant(
            name=" ".join(filter(None, ("prepare", "hand" if hands == 1 else "frame", *words))),
            kernel=prepare_kernel,
            types={
                name: _PREPARED.get(name.removeprefix("out_"), "*fp32")
                for name in prepare_kernel.arg_names
            }
            | dict.fromkeys((*RANGES, "rotation_rad"), "fp64"),
            constants={
                **{name: None for name, given in absent.items() if not given},
                "HANDS": hands,
                "MIRROR": mirror,
            },
            num_warps=NUM_WARPS,
            options=OPTIONS,
        )


def loss_variants(choices: Iterable[tuple[int, str]], *, all_kinds: bool) -> Iterator[Variant]:
    """Yield the loss kernels with all their terms for each (hands, type of predictions)."""
    from train.losses.fused import joints as fused_joints
    from train.losses.fused import mesh as fused_mesh
    from train.losses.fused import rotations as fused_rotations
    from train.losses.fused.joints import KINDS
    from train.losses.inputs import JOINT_TERMS, MESH_TERMS, ROTATION_TERMS

    masks = ("valid", "has_mesh", "has_contact", "has_beta", "present", "seen")
    predicted = ("pred", "pred_joints", "pred_beta", "logits", "rot6d")
    numbers = {"num": "i32", **dict.fromkeys(("per_batch", "per_pixel", "smooth", "alpha"), "fp32")}

    def variant(name: str, kernel: Any, constants: Mapping[str, int], dtype: str) -> Variant:
        types = dict.fromkeys(kernel.arg_names, "*fp32") | numbers
        types |= dict.fromkeys(masks, "*u1") | dict.fromkeys(predicted, f"*{dtype}")
        return Variant(
            name=name,
            kernel=kernel,
            types={key: types[key] for key in kernel.arg_names},
            constants=constants,
            num_warps=modules[kernel].NUM_WARPS,
            options=getattr(modules[kernel], "OPTIONS", {}),
        )

    joints, mesh = fused_joints.joints_kernel, fused_mesh.mesh_kernel
    rotations = fused_rotations.rotations_kernel
    modules: dict[Any, Any] = {
        joints: fused_joints,
        mesh: fused_mesh,
        rotations: fused_rotations,
    }
    for hands, dtype in choices:
        what = f"{hands} {'hand' if hands == 1 else 'hands'} {dtype}"
        for kind, number in list(KINDS.items())[: None if all_kinds else 1]:
            rows = dict(zip(joints.arg_names[-len(JOINT_TERMS) :], range(9), strict=False))
            constants = {"HANDS": hands, "KIND": number, **rows}
            yield variant(f"joint losses {kind.name} {what}", joints, constants, dtype)
        for name, kernel, terms in (
            ("mesh", mesh, MESH_TERMS),
            ("rotation", rotations, ROTATION_TERMS),
        ):
            rows = dict(zip(kernel.arg_names[-len(terms) :], range(9), strict=False))
            yield variant(f"{name} losses {what}", kernel, {"HANDS": hands, **rows}, dtype)


def compile_all(chosen: list[Variant], targets: Iterable[int] = TARGETS) -> list[Build]:
    """Return the builds of each variant on each target.

    Raises:
        ValueError: If Triton is set to interpret.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ValueError("TRITON_INTERPRET is set, so Triton cannot compile; unset it")
    pairs = list(itertools.product(chosen, targets))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda pair: compile_one(*pair), pairs))


def compile_one(variant: Variant, capability: int) -> Build:
    """Compile for one GPU and read the resource usage of the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    types = {name: variant.types.get(name, "i32") for name in names}
    source = ASTSource(
        fn=variant.kernel,
        signature=types | dict.fromkeys(variant.constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, WARP),
        options={"num_warps": variant.num_warps, "num_stages": 1, **variant.options},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    used = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", usage)}
    return Build(
        variant=variant.name,
        target=f"sm_{capability}" + "a" * (capability >= ARCH_SPECIFIC),
        registers=used["REG"],
        spilled_bytes=used["STACK"] + used["LOCAL"],
        shared_bytes=used["SHARED"],
        **_sectors(variant, compiled.asm["ttgir"]),
    )


_ITEMSIZE: Final = {"*fp32": 4, "*bf16": 2, "*fp16": 2, "*u8": 1}


def _sectors(variant: Variant, ttgir: str) -> dict[str, float]:
    """Return the sectors of a build of the gather, nothing for another kernel."""
    if "YUV420" not in variant.constants:
        return {}
    from pipeline.gather.triton import BLOCK_U, pixel_of

    lanes = lanes_of(loads_layout(ttgir))
    yuv420, channels_last = (bool(variant.constants[key]) for key in ("YUV420", "CHANNELS_LAST"))
    u, v = pixel_of.fn(lanes, BLOCK_U)
    return {
        "load_sectors": sectors_per_load(u, v, channels=1 if yuv420 else 3),
        "store_sectors": sectors_per_store(
            u, v, channels_last=channels_last, itemsize=_ITEMSIZE[variant.types["out"]]
        ),
    }


if __name__ == "__main__":
    found = compile_all(few_variants(), [int(target) for target in sys.argv[1:]])
    print(json.dumps([dataclasses.asdict(build) for build in found]))
