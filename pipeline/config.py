"""Options of the pipeline. Imports nothing heavy, so that a typo is answered at once.

Treat every config as read-only once it is built. A change of one value is
``dataclasses.replace(config, split="val")``.
"""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final

from omegaconf import MISSING

from model.fields import check_fields
from pipeline.store.schema import FLAGS

MAX_CACHE_PX: Final = 4096
"""Keeps every intermediate of the gather's 16.16 coordinates within int32."""


class ViewKind(Enum):
    """What one sample is."""

    hand = "hand"
    """A square crop around one hand; a frame with two hands is two samples."""
    hand_object = "hand_object"
    """A square crop around a frame's hands and the object they act on, with both hand slots."""
    frame = "frame"
    """The whole frame with both hand slots, letterboxed."""


class ImageDtype(Enum):
    """Element type of ``Batch.image``."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    uint8 = "uint8"
    """0..255 and neither mean nor deviation; for trainers that normalise on their own."""


class Codec(Enum):
    """How a cached crop is kept; ``pipeline.decode.codec`` has the formulas."""

    rgb = "rgb"
    """3 bytes per pixel, as decoded."""
    yuv420 = "yuv420"
    """1.5 bytes per pixel, lossy: luma, and chroma at half the resolution, as in most JPEGs."""


class CacheCodec(Enum):
    """How the samples are held between epochs."""

    auto = "auto"
    rgb = "rgb"
    yuv420 = "yuv420"
    stream = "stream"


class Boundary(Enum):
    """What becomes of a window that reaches over the end of its run."""

    drop = "drop"
    repeat = "repeat"
    """It repeats the last frame, which ``is_real`` marks."""


class Reader(Enum):
    """How the bytes of the store are read while the cache is filled."""

    auto = "auto"
    mmap = "mmap"
    pread = "pread"
    zarr = "zarr"


class OnBadImage(Enum):
    """What to do with an image that cannot be decoded."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True, slots=True)
class ViewConfig:
    """Which part of which frames becomes a sample."""

    kind: ViewKind = ViewKind.hand
    """hand: a square crop per hand. hand_object: a square crop per frame, around its hands and the
    object they act on: the grasped one, else the nearest to a hand, else the first. frame: the
    whole frame, letterboxed."""
    pad: float = 1.5
    """Side of the input crop over the longer side of the box (not in the frame view). The box of a
    hand is that of its joints, which leave out flesh and context; 1.5 shows the whole hand and part
    of the forearm."""
    margin: float = 1.25
    """Side of the cached crop over the side of the input crop (not in the frame view). Turning,
    shifting and growing the crop within it shows real pixels instead of repeated border pixels."""
    require_joints: bool = False
    """Leave out hands without any annotated joint in view (other views: frames without any)."""
    exclude_flags: list[str] = field(default_factory=lambda: ["flat_image"])
    """Quality flags of the store whose rows are left out in training, by default images of one
    colour; evaluation keeps them, as the official denominators do."""

    def __post_init__(self) -> None:
        check_fields(self, "view", pad=(0.1, 10), margin=(1, 4))
        for flag in self.exclude_flags:
            if flag not in FLAGS:
                raise ValueError(
                    f"view.exclude_flags must be among {', '.join(FLAGS)}, got {flag!r}"
                )


@dataclass(kw_only=True, slots=True)
class CacheConfig:
    """The decoded crops that stay on the device."""

    size_px: int = 256
    """Side of a cached crop, pixels; one sample takes 3 * size_px^2 bytes of device memory, half of
    that as yuv420."""
    codec: CacheCodec = CacheCodec.auto
    """rgb: resident, 3 bytes per pixel, as decoded. yuv420: resident, 1.5 bytes per pixel, lossy,
    size_px even; evaluation takes rgb or stream instead. stream: not resident, decoded again in
    every epoch. auto: the first of these that fits beside the model; the log says which and why."""
    reader: Reader = Reader.auto
    """auto: memory map where the files allow it. pread: for network disks. zarr: any layout."""
    decode_threads: int = 0
    """CPU threads of the decoder; 0 = this process's share of the cores, at most 16 beside a GPU,
    which does most of the decoding."""
    decode_batch: int = 64
    """Images per decoder batch."""
    hw_decoder_load: float = 0.65
    """Share of the JPEGs that a GPU's own JPEG engines decode, where it has them (A100, H100, H200,
    Blackwell); the rest goes to its cores. python -m benchmarks gpu sweeps it."""
    on_bad_image: OnBadImage = OnBadImage.stop
    """stop: an image that cannot be decoded ends the run and is named. skip: it is named in the
    log, stays black and without labels in training; evaluation always stops."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "cache",
            size_px=(8, MAX_CACHE_PX),
            decode_threads=(0, 4096),
            decode_batch=(1, 65_536),
            hw_decoder_load=(0, 1),
        )
        if self.codec is CacheCodec.yuv420 and self.size_px % 2:
            raise ValueError(
                f"cache.size_px must be even for cache.codec=yuv420, got {self.size_px}"
            )


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Ranges of the random changes of a training sample; uniform, 0 = off. Never in evaluation."""

    rotation_deg: float = 30.0
    """In-plane turn up to this angle either way, degrees."""
    scale: float = 0.2
    """Side of the crop times 1 - scale .. 1 + scale."""
    shift: float = 0.05
    """Centre of the crop moved up to this share of its side, per axis."""
    gain: float = 0.1
    """Each colour channel times 1 - gain .. 1 + gain."""
    brightness: float = 0.2
    """All channels times 1 - brightness .. 1 + brightness."""
    contrast: float = 0.2
    """Distance from mid grey times 1 - contrast .. 1 + contrast."""
    saturation: float = 0.2
    """Distance from the pixel's own grey times 1 - saturation .. 1 + saturation."""
    erase_probability: float = 0.0
    """Chance that a rectangle of the input is replaced by the mean colour (uint8: by black)."""
    erase_size: float = 0.3
    """Longest side of that rectangle, share of the input's side."""

    def __post_init__(self) -> None:
        shares = ("gain", "brightness", "contrast", "saturation", "erase_probability", "erase_size")
        bounds = {"rotation_deg": (0.0, 180.0), "scale": (0.0, 0.5), "shift": (0.0, 0.5)}
        check_fields(self, "augment", **bounds, **dict.fromkeys(shares, (0.0, 1.0)))

    @property
    def is_off(self) -> bool:
        """Whether nothing is changed."""
        ranges = (self.rotation_deg, self.scale, self.shift, self.gain, self.brightness)
        return not any((*ranges, self.contrast, self.saturation, self.erase_probability))


@dataclass(kw_only=True, slots=True)
class WindowConfig:
    """Which frames make a window; ``pipeline.order.windows`` has the rules."""

    length: int = 1
    """Frames of a window; 1 = single samples."""
    stride: int = 1
    """Distance of the first frames of neighbouring windows, frames."""
    step: int = 1
    """Distance of neighbouring frames within a window, frames."""
    boundary: Boundary = Boundary.drop
    """drop: only windows that fit. repeat: a window from every stride-th frame to the end of the
    run; frames beyond it repeat the last one and are marked."""
    frame_stride: int = 0
    """Difference of frame_idx between neighbouring frames; 0 = the smallest one that occurs in
    a camera of the sequence. Give it where a view leaves out frames in a regular way, or else
    frames on both sides of what is left out count as neighbours."""

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("length", "stride", "step"), (1, math.inf))
        check_fields(self, "window", **positive, frame_stride=(0, math.inf))


@dataclass(kw_only=True, slots=True)
class MixPart:
    """One store of a mixture."""

    store: str = MISSING
    """Store directory written by python -m preprocess build-cache."""
    split: str = "train"
    """Row list of the store."""
    subset: float = 1.0
    """Share of the split's rows to use, evenly spaced over its sequences."""
    weight: float = 1.0
    """Share of every batch, relative to the other weights, whatever the sizes of the sets."""

    def __post_init__(self) -> None:
        check_fields(self, "mix.NAME")
        _check_shares("mix.NAME.", self)


@dataclass(kw_only=True, slots=True)
class PipelineConfig:
    """How a store becomes batches."""

    store: str = MISSING
    """Store directory written by python -m preprocess build-cache."""
    split: str = "train"
    """Row list of the store; python -m preprocess show-cache lists them. train is the dataset's own
    training split (dexycb: s0_train, arctic: p1_train)."""
    subset: float = 1.0
    """Share of the split's rows to use, evenly spaced over its sequences."""
    mix: dict[str, MixPart] = field(default_factory=dict)
    """Further stores, by names of your own, drawn beside the first in every batch."""
    weight: float = 1.0
    """Share of store in every batch, relative to the weights in mix."""
    batch_size: int = 64
    """Samples per step (windows, where window.length > 1), over all ranks. python -m train run
    batch_size=auto takes as many as fit."""
    seed: int = 0
    """Decides order and augmentation."""
    input_px: int = 224
    """Side of the network's input, pixels."""
    mirror_left: bool = True
    """Mirror left hands, labels included, so that every hand looks right (hand view)."""
    image_dtype: ImageDtype = ImageDtype.float32
    """Element type of the images."""
    channels_last: bool = False
    """Memory format of the images: NHWC behind the same [b, 3, s, s]; what cuDNN convolutions like
    best."""
    read_ahead: int = 0
    """Batches made ahead in a thread, on a CPU with cores to spare. A GPU makes them in its own
    time anyway."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Mean of red, green, blue in 0..1, subtracted from the input; ImageNet's by default."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Deviation of red, green, blue, divides the input; ImageNet's by default."""
    view: ViewConfig = field(default_factory=ViewConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    window: WindowConfig = field(default_factory=WindowConfig)

    def __post_init__(self) -> None:
        check_fields(
            self,
            batch_size=(1, math.inf),
            seed=(0, 2**63 - 1),
            read_ahead=(0, 1024),
            input_px=(8, MAX_CACHE_PX),
        )
        _check_shares("", self)
        for name, values, least in (("mean", self.mean, 0.0), ("std", self.std, 1e-3)):
            if len(values) != 3:
                raise ValueError(f"{name} must have 3 values (red, green, blue), got {values}")
            if not least <= min(values) <= max(values) <= 1:
                raise ValueError(
                    f"{name} must lie in {least:g}..1, for colours in 0..1, got {values}"
                )


# --- commands of ``python -m pipeline`` ---------------------------------------------------------

_ALIASES = {
    "store": "pipeline.store",
    "split": "pipeline.split",
    "subset": "pipeline.subset",
    "weight": "pipeline.weight",
    "mix": "pipeline.mix",
    "batch_size": "pipeline.batch_size",
    "size_px": "pipeline.cache.size_px",
    "codec": "pipeline.cache.codec",
    "window": "pipeline.window",
    "input_px": "pipeline.input_px",
}


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """What fits on a device. Treat as read-only."""

    ALIASES: ClassVar[dict[str, str]] = _ALIASES

    device_gib: float | None = None
    """Memory of the device, GiB; null shows cards of 24, 48, 80 and 141 GB side by side."""
    model_gib: float = 8.0
    """Peak of the training step without the cache, GiB: weights, gradients, optimiser, activations;
    5 % are added. train run logs it."""
    world: int = 1
    """Devices that share the samples."""
    num_samples: int | None = None
    """Plan as if the store had so many: a small build shows what the whole dataset needs."""
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=MISSING))

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("world", "num_samples"), (1, math.inf))
        check_fields(self, **positive, device_gib=(1, math.inf), model_gib=(0, math.inf))


@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """Rates per stage. Treat as read-only."""

    ALIASES: ClassVar[dict[str, str]] = _ALIASES

    device: str = "cpu"
    """cpu or cuda."""
    seconds: float = 3.0
    """Time measured per stage, after a warm-up."""
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=MISSING))

    def __post_init__(self) -> None:
        check_fields(self, seconds=(1e-3, 3600))
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")


def _check_shares(prefix: str, part: MixPart | PipelineConfig) -> None:
    if not 0 < part.subset <= 1:
        raise ValueError(f"{prefix}subset must lie in (0, 1], got {part.subset}")
    if part.weight <= 0:
        raise ValueError(f"{prefix}weight must be a positive number, got {part.weight}")
