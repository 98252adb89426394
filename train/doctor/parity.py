"""Checks of ``python -m train doctor``: our kernels against their references on this device.

Tiny sizes: the test suite covers corner cases, these checks cover the machine. One wrong grey level
is 0.004 in the gather's output, far above what the order of float32 sums may change.
"""

import math
import os
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from model.geometry.crop import square_crop_affine
from pipeline.batch import Batch
from pipeline.config import AugmentConfig, PipelineConfig
from pipeline.decode.codec import Codec, allocate, write
from pipeline.gather import cpu as gather_native
from pipeline.gather.augment import draw
from pipeline.gather.params import GatherParams, InputFormat, gather_params
from pipeline.gather.reference import gather_eager
from pipeline.gather.select import gather
from pipeline.labels.prepare import prepare_eager
from pipeline.labels.table import LabelTable
from pipeline.view import ViewTable, column_names, table_to
from train.doctor.config import DoctorConfig
from train.doctor.finding import Finding, error, ok

NUM: Final = 6
CACHE_PX: Final = 40
INPUT_PX: Final = 24
AUGMENT: Final = AugmentConfig(
    rotation_deg=90, gain=0.3, brightness=0.3, contrast=0.3, saturation=0.3, erase_probability=0.5
)
TOLERANCE: Final = 1e-5
"""Tolerance of float32 results, relative to the largest value."""
CURE: Final = "do not train with it; report this with the output of: python -m train doctor out=..."


def gather_kernel(_: DoctorConfig) -> Finding:
    """Compare the gather with its reference, with both codecs."""
    if not torch.cuda.is_available() and not gather_native.available():
        return ok("no machine code: the CPU runs the reference itself")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = "Triton" if device.type == "cuda" else "machine code"
    worst = max(gather_error(codec, device) for codec in Codec)
    return verdict(f"{name} on {device}", worst)


def prepare_kernel(_: DoctorConfig) -> Finding:
    """Compare the kernel for augmentation sampling and labels with its reference."""
    return triton_parity(prepare_error)


def triton_parity(error_on: Callable[[torch.device], float]) -> Finding:
    """Judge a Triton kernel by its largest difference from its reference on this device."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not torch.cuda.is_available() and not interpreted:
        return ok("for GPUs only: a CPU runs the reference itself")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = "Triton, interpreted," if interpreted else "Triton"
    return verdict(f"{name} on {device}", error_on(device))


def gather_error(codec: Codec, device: torch.device) -> float:
    """Return the largest difference of the gather from its reference; infinite for a NaN."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM, CACHE_PX, CACHE_PX, 3)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    ids = torch.arange(NUM, device=device)
    pixels = allocate(NUM, CACHE_PX, codec, device)
    write(pixels, ids, crops.to(device))
    drawn = draw(AUGMENT, 0, 0, ids)
    cos, sin = drawn.rotation_rad.cos(), drawn.rotation_rad.sin()
    turn = torch.stack((cos, -sin, sin, cos), -1).view(-1, 2, 2)
    turn = turn * (1 + ids % 3)[:, None, None]  # filter support of 1 to 3
    middle = torch.full((NUM, 2, 1), (INPUT_PX - 1) / 2, dtype=turn.dtype, device=device)
    A_cache_from_input = torch.cat((turn, (CACHE_PX - 1) / 2 - turn @ middle), -1)
    params = gather_params(A_cache_from_input, drawn, INPUT_PX)
    form = InputFormat(
        size_px=INPUT_PX, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), dtype=torch.float32
    )
    index = ids.flip(0)
    ours, theirs = (f(pixels, index, params, form) for f in (gather, gather_eager))
    return difference(ours, theirs)


def prepare_error(device: torch.device) -> float:
    """Return the largest difference of any column between the kernel and its reference."""
    from pipeline.labels import prepare_triton

    config = PipelineConfig(store="-", augment=AUGMENT, input_px=INPUT_PX, seed=7)
    on_host = example_tables()
    view, labels = table_to(on_host[0], device), table_to(on_host[1], device)
    given = torch.arange(NUM, device=device).flip(0), torch.tensor(3, device=device), config
    how, batch = prepare_triton.prepare(view, labels, *given)
    true_how, true_batch = prepare_eager(view, labels, *given)
    return max(_table_error(how, true_how), _table_error(batch, true_batch))


def example_tables() -> tuple[ViewTable, LabelTable]:
    """Return example samples of right and left hands; every third has no MANO parameters."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn((NUM, *shape), generator=generator)

    center_px = 100 + 10 * normal(2).double()
    size_px = 80 + 10 * normal().double()
    has_mano = torch.arange(NUM)[:, None] % 3 > 0
    missing = torch.where(has_mano, 0.0, math.nan)
    joints = 0.05 * normal(1, 21, 3) + torch.tensor((0.0, 0.0, 0.6))
    K = torch.tensor(((150.0, 0.5, 112.0), (0.0, 140.0, 118.0), (0.0, 0.0, 1.0)))
    view = ViewTable(
        row=torch.arange(NUM),
        sample_id=2 * torch.arange(NUM),
        center_px=center_px,
        size_px=size_px,
        A_cache_from_frame=square_crop_affine(center_px, 1.25 * size_px, CACHE_PX),
    )
    labels = LabelTable(
        K=K.repeat(NUM, 1, 1),
        joints_3d=joints,
        joint_valid=torch.ones(NUM, 1, 21, dtype=torch.bool),
        theta_rotmat=torch.linalg.qr(normal(1, 16, 3, 3))[0] + missing[..., None, None, None],
        beta=normal(1, 10) + missing[..., None],
        transl=normal(1, 3) + missing[..., None],
        root_rest=0.1 * normal(1, 3) + missing[..., None],
        has_joints=torch.ones(NUM, 1, dtype=torch.bool),
        has_mano=has_mano,
        has_beta=has_mano,
        is_right=torch.arange(NUM)[:, None] % 2 == 0,
        object_id=torch.arange(NUM) % 3 - 1,
        object_pose=normal(1, 3, 4)[:, 0],
        object_arti_rad=normal(1)[:, 0] + missing[:, 0],
        has_object=torch.arange(NUM) % 3 > 0,
        joint_set=torch.zeros(NUM, dtype=torch.int64),
    )
    return view, labels


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the largest value; infinite if NaN positions differ."""
    ours, theirs = ours.double(), theirs.double()
    if ours.shape != theirs.shape or not torch.equal(ours.isnan(), theirs.isnan()):
        return math.inf
    off = (ours - theirs).nan_to_num(0).abs().max()
    return float(off / theirs.nan_to_num(0).abs().max().clamp_min(1.0))


def _table_error(ours: GatherParams | Batch, theirs: GatherParams | Batch) -> float:
    """Return the largest difference of a column; integers and masks must be equal.

    ``A_q16`` may be off by one unit of 2^-16 pixels, by the last bit of the sine.
    """
    worst = 0.0
    for name in column_names(theirs):
        a, b = getattr(ours, name), getattr(theirs, name)
        if name == "image":
            continue
        if b.is_floating_point():
            worst = max(worst, difference(a, b))
        elif a.shape != b.shape or (a.int() - b.int()).abs().max() > (name == "A_q16"):
            return math.inf
    return worst


def verdict(what: str, worst: float) -> Finding:
    """Return whether ``worst`` is within the tolerance."""
    if worst > TOLERANCE:
        text = f"{what} is not its reference: off by {worst:.2g} of the largest value"
        return error(text, CURE, worst=worst if math.isfinite(worst) else None)
    return ok(f"{what} equals its reference within {worst:.1g}", worst=worst)
