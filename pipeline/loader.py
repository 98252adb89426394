"""The loader: batches of a store's split, or of a mixture of stores, on the device.

    loader = Loader(PipelineConfig(store="build/freihand.zarr"), device="cuda")
    for batch in loader:                # training: endless
        ...
    scores = Loader(config, device="cuda", training=False)     # evaluation: each sample once

If the samples fit, they are decoded once and stay on the device: a batch then needs no disk access,
no decoding and no synchronisation. If not, they are decoded again while the device works.
"""

import itertools
import logging
import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import torch
from jaxtyping import Int64
from rich.console import Console
from rich.filesize import decimal
from torch import Tensor

from pipeline import memory
from pipeline.app.compiler import make_cc_one_program
from pipeline.app.progress import show_progress
from pipeline.assemble import Assembler, BatchPlan
from pipeline.batch import Batch, LabelGroup
from pipeline.config import OnBadImage, PipelineConfig
from pipeline.decode import resident
from pipeline.decode.codec import Codec, Pixels
from pipeline.decode.read_ahead import read_ahead
from pipeline.decode.stream import Frames, frames_of, stream_crops
from pipeline.labels.objects import load_objects, names_in
from pipeline.labels.table import hide_group, hide_labels, load_groups, load_labels
from pipeline.order.mix import MIX_ORDER
from pipeline.order.parts import (
    Part,
    content_of,
    describe_sample,
    names_of,
    open_parts,
    order_of,
    rank_samples,
)
from pipeline.store.reader import Store
from pipeline.view import ViewTable, concatenated, table_to, upload

log = logging.getLogger(__name__)
STATE_VERSION: Final = 2
STEPS_AT_ONCE: Final = 64
"""Steps whose sample indices are copied to the device at once."""


class Loader:
    """Batches of one split, or of a mixture of stores, on one device.

    In training every epoch has its own order and augmentation, a pure function of (seed, epoch,
    sample id), and whole batches only. In evaluation the samples come once, in the split's order,
    unaugmented, and the last batch may be short.

    With W ranks every process creates its own loader: it holds only its part of the samples and
    yields ``batch_size / W`` of every global batch, which is the same for any W. In evaluation each
    rank yields its part of the split.

    A loader is also a context manager: leaving it frees the device memory and the decoder.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        device: torch.device | str,
        training: bool = True,
        rank: int = 0,
        world: int = 1,
        model_bytes: int = 0,
        groups: Sequence[type[LabelGroup]] = (),
    ) -> None:
        """Open the stores and fill the cache, showing the progress.

        Args:
            config: What to load.
            device: Device of the cache and the batches, such as ``"cuda"``.
            training: Shuffled, augmented and endless; else each sample once.
            rank: This process.
            world: Number of processes.
            model_bytes: Peak memory of a training step on ``device``, which the cache leaves free.
            groups: Additional label groups of batches, ``pipeline.labels``.

        Raises:
            ValueError: If configuration and store are incompatible, or memory is insufficient.
            StoreError: If the store cannot be read; ``BadImageError`` if an image cannot.
        """
        self.config = config
        self.device = usable_device(device)
        self.training = training
        self._cache = config.cache
        if not training:
            self._cache = replace(config.cache, on_bad_image=OnBadImage.stop)
        self._running: list[Generator[tuple[int, int, Batch]]] = []
        self._resources = ExitStack()
        with ExitStack() as on_error:
            on_error.callback(self.close)
            self._parts = open_parts(config, self._resources, training=training)
            stores = [part.store for part in self._parts]
            self._groups = tuple(
                group for group in groups if not group.OPTIONAL or any(map(group.is_in, stores))
            )
            self.num_samples = sum(len(part) for part in self._parts)
            """Number of samples (windows) of all ranks together."""
            self.content_sha256 = content_of(config)
            self.joint_sets = frozenset(part.joint_set for part in self._parts)
            self._order = order_of(self._parts, config, rank=rank, world=world)
            if training:
                self._order.check()  # fail early, before the long fill
            self._batch_size = max(1, config.batch_size // world)
            items = self._order.owned() if training else self._order.share()
            self._samples = rank_samples(items, self._parts)
            self._has_windows = self._samples.place.shape[1] > 1
            self._load(model_bytes)
            on_error.pop_all()
        self._epoch, self._step = 0, 0

    def _load(self, model_bytes: int) -> None:
        """Put labels and, if they fit, pixels on the device."""
        config, cache = self.config, self._cache
        num_samples = sum(len(view) for view in self._samples.views)
        plan = memory.plan_memory(
            memory.demand_of(self._parts, config, num_samples, self._groups, self.device),
            device_bytes=memory.available_bytes(self.device),
            model_bytes=model_bytes,
            codecs=memory.allowed_codecs(cache, training=self.training),
        )
        memory.require_room(plan, cache, training=self.training)
        log.info("%s", plan.sentence())
        views = [
            (part.store, view) for part, view in zip(self._parts, self._samples.views, strict=True)
        ]
        stores = [store for store, _ in views]
        self.objects = load_objects(stores, self.device)
        """Object models that ``Batch.object_id`` indexes."""
        counts = [len(names_in(store)) for store in stores]
        first = list(itertools.accumulate(counts[:-1], initial=0))
        labels = concatenated(
            [
                load_labels(*view, config.view.kind, first_object=number)
                for view, number in zip(views, first, strict=True)
            ]
        )
        groups = load_groups(self._groups, views, config.view.kind, first)
        view = concatenated(self._samples.views)
        self.resident: resident.Resident | None = None
        """The pixels on the device; None where they are streamed."""
        self._frames: Frames | None = None
        self._skipped: set[int] = set()
        if plan.chosen is None:
            self._frames = frames_of(views, cache)
        else:
            self.resident = self._fill(views, plan.chosen)
            hide_labels(labels, self.resident.skipped)
            for group in groups:
                hide_group(group, self.resident.skipped)
            self._resources.close()
        self._assembler = Assembler(
            table_to(view, self.device),
            table_to(labels, self.device),
            config,
            augments=self.training and not config.augment.is_off,
            groups=[table_to(group, self.device) for group in groups],
        )
        log.info("%s", self.summary())

    def _fill(self, views: Sequence[tuple[Store, ViewTable]], codec: Codec) -> resident.Resident:
        """Decode the samples into the cache, showing the progress."""
        console = Console(stderr=True, quiet=self._order.rank > 0)  # one bar for all ranks
        begin = time.perf_counter()
        what = " + ".join(["cache " + self.config.split, *self.config.mix])
        with show_progress(what, console, unit="images") as report:

            def show(images: int, num_bytes: int, total: int) -> None:
                gb_per_s = num_bytes / (time.perf_counter() - begin) / 1e9
                report(images, total, f"{gb_per_s:.2f} GB/s")

            return resident.fill(views, self._cache, codec, self.device, progress=show)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The stores and their samples in use."""
        return self._parts

    def check(self, config: PipelineConfig) -> None:
        """Reject a batch size that ``change`` could not continue with.

        Raises:
            ValueError: States what fits.
        """
        replace(self._order, batch_size=config.batch_size).check()

    def steps_per_epoch(self, config: PipelineConfig) -> int:
        """Return the batches of an epoch with the batch size of ``config``."""
        return replace(self._order, batch_size=config.batch_size).steps_per_epoch()

    def __len__(self) -> int:
        """Return the batches of an epoch (training) or of the split (evaluation)."""
        if self.training:
            return self._order.steps_per_epoch()
        return math.ceil(len(self._samples.items) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the current state on: endlessly in training, else once."""
        if not self.training:
            yield from self.epoch(0)
            return
        yield from self._run(self._epoch, self._step, endless=True)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from ``first_step`` on, advancing the state."""
        yield from self._run(epoch, first_step, endless=False)

    def label_batches(self) -> Iterator[Batch]:
        """Yield every sample of this rank once, unaugmented; ``image`` has no pixels."""
        for plan in self._plans(self._in_order()):
            yield self._assembler.labels(plan)

    def describe(self, sample_id: int) -> str:
        """Describe a sample for a person: row, sequence, camera, frame, store.

        Raises:
            ValueError: If no store of the run has it.
        """
        return describe_sample(self._parts, sample_id)

    def change(self, config: PipelineConfig) -> None:
        """Continue with another batch size, seed or augmentation, from the next epoch on.

        Nothing is decoded again. No effect if none of these changes.

        Raises:
            ValueError: If the batch size is not valid.
        """
        old = self.config
        wanted = replace(
            old, batch_size=config.batch_size, seed=config.seed, augment=config.augment
        )
        if wanted == old:
            return
        order = replace(self._order, batch_size=wanted.batch_size, seed=wanted.seed)
        order.check()
        self.config, self._order = wanted, order
        self._batch_size = max(1, wanted.batch_size // order.world)
        self._assembler.change(wanted, augments=self.training and not wanted.augment.is_off)
        if (self._epoch, self._step) != (0, 0):
            self._epoch, self._step = self._epoch + bool(self._step), 0

    def write_into(self, batch: Batch | None) -> None:
        """Write further batches into the memory of this one, as a captured step reads it there.

        Each then overwrites the one before it. Ends with None, and with a ``change`` of the
        batches.

        Args:
            batch: One of this loader's, dense, with its own shapes; None = each gets memory of its
                own.

        Raises:
            ValueError: If batches are made ahead of the one in use.
        """
        if batch is not None and self.config.read_ahead and self.device.type == "cpu":
            raise ValueError(
                "batches cannot share memory while others are made ahead in a thread; use "
                "read_ahead=0"
            )
        self._assembler.write_into(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the loader: the next batch is ``step`` of ``epoch``."""
        return {
            "version": STATE_VERSION,
            "epoch": self._epoch,
            "step": self._step,
            **self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        The number of ranks may differ: global batches do not depend on it.

        Raises:
            ValueError: If the sample order would differ; names what changed.
        """
        require_known_order(state)
        for name, value in self._identity().items():
            found = state.get(name)
            if found != value:
                raise ValueError(
                    f"checkpoint was written with {name}={found}, this run has {value}: the "
                    "order of the samples would differ; use the same store, split, subset, mix, "
                    "view, window, batch_size and seed, or start a new run"
                )
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def summary(self) -> str:
        """Return one line about the cached samples."""
        names, held = names_of(self.config), self.resident
        if held is None:
            num = sum(len(view) for view in self._samples.views)
            return f"{num} samples of {names}, decoded as they are needed"
        return (
            f"cached {len(held.pixels)} samples of {names}: {decimal(held.pixels.nbytes)} on "
            f"{self.device} as {held.pixels.codec.value}, {held.num_images} images at "
            f"{held.num_images / held.seconds:.0f}/s, "
            f"{held.num_bytes / held.seconds / 1e9:.2f} GB/s of JPEG"
        )

    @property
    def held_bytes(self) -> int:
        """Memory of pixels and labels on the device; pixels that are streamed are not held."""
        pixels = 0 if self.resident is None else self.resident.pixels.nbytes
        return pixels + self._assembler.nbytes

    def close(self) -> None:
        """Free the device's memory, the decoder and the files; iterators then end."""
        for batches in self._running:
            batches.close()
        self._running.clear()
        self._resources.close()
        for name in ("resident", "_frames", "_assembler"):
            setattr(self, name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- batches ----------------------------------------------------------------------------------

    def _run(self, epoch: int, step: int, *, endless: bool) -> Iterator[Batch]:
        """Yield batches from (epoch, step) on; the state advances with each one yielded."""
        batches = self._batches(epoch, step, endless=endless)
        if self.config.read_ahead and self.device.type == "cpu":
            batches = read_ahead(batches, self.config.read_ahead)
        self._running.append(batches)
        try:
            for epoch_, step_, batch in batches:
                self._epoch, self._step = epoch_, step_ + 1
                if self._step == len(self):
                    self._epoch, self._step = epoch_ + 1, 0
                yield batch
        finally:
            batches.close()
            self._running = [other for other in self._running if other is not batches]

    def _batches(
        self, epoch: int, step: int, *, endless: bool
    ) -> Generator[tuple[int, int, Batch]]:
        """Yield epoch, step and batch."""
        items = self._items(epoch, step, endless=endless)
        numbers = self._numbers(epoch, step, endless=endless)
        with closing(self._located(items)) as located:
            for (epoch_, step_), (plan, pixels, where) in zip(numbers, located, strict=False):
                draw = self._order.draw_number(epoch_, step_) if self.training else None
                yield epoch_, step_, self._assembler.batch(plan, pixels, where, draw)

    def _numbers(self, epoch: int, step: int, *, endless: bool) -> Iterator[tuple[int, int]]:
        for e in itertools.count(epoch) if endless else (epoch,):
            for s in range(step if e == epoch else 0, len(self)):
                yield e, s

    def _items(self, epoch: int, step: int, *, endless: bool) -> Iterator[Int64[Tensor, " b"]]:
        if not self.training:
            yield from itertools.islice(self._in_order(), step, None)
            return
        for e in itertools.count(epoch) if endless else (epoch,):
            yield from self._order.batches(e, step if e == epoch else 0)

    def _in_order(self) -> Iterator[Int64[Tensor, " b"]]:
        return iter(torch.split(self._samples.items, self._batch_size))

    def _located(
        self, items: Iterator[Int64[Tensor, " b"]]
    ) -> Generator[tuple[BatchPlan, Pixels, Int64[Tensor, "*b"] | None]]:
        """Yield each batch's samples, and the pixels and rows they are in."""
        if self._frames is None:
            for plan in self._plans(items):
                if self.resident is None:  # closed
                    return
                yield plan, self.resident.pixels, plan.place
            return
        mine, ahead = itertools.tee(items)
        frames_per_item = self._samples.place.shape[1]
        crops = stream_crops(
            self._frames,
            (self._samples.place[item].flatten() for item in ahead),
            self._cache,
            self._batch_size * frames_per_item,
            self.device,
            self._skipped,
        )
        with closing(crops):
            known = 0
            # Crops first: decode failures are known before the labels are looked up.
            for crop, item in zip(crops, mine, strict=False):
                if len(self._skipped) > known:
                    known = len(self._skipped)
                    self._assembler.hide(torch.tensor(sorted(self._skipped)))
                plan = next(self._plans(iter([item])))
                yield plan, Pixels(codec=Codec.rgb, rgb=crop), None

    def _plans(self, items: Iterator[Int64[Tensor, " b"]]) -> Iterator[BatchPlan]:
        """Yield each batch's samples on the device, copied for several steps at once."""
        while some := list(itertools.islice(items, STEPS_AT_ONCE)):
            item = torch.cat(some)
            place, is_real = self._samples.place[item], self._samples.is_real[item]
            if not self._has_windows:
                place = place[:, 0]
            yield from self._assembler.plans(
                upload(place, self.device),
                None if is_real.all() else upload(is_real, self.device),
                [len(item) for item in some],
            )

    def _identity(self) -> dict[str, Any]:
        order = self._order
        return {
            "seed": order.seed,
            "num_samples": list(order.sizes) if order.is_mixture else order.sizes[0],
            "batch_size": order.batch_size,
            "weights": list(order.weights) if order.is_mixture else None,
            **({"mix_order": MIX_ORDER} if order.is_mixture else {}),
            "window_length": self._samples.place.shape[1],
        }


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device from its name.

    Raises:
        ValueError: If there is no such device, or torch cannot use it here.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {str(found)!r}")
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if (found.index or 0) >= count:
        raise ValueError(
            f"device={str(found)!r}, but torch {torch.__version__} (CUDA {torch.version.cuda}) "
            f"finds {count} usable GPUs; check the driver with nvidia-smi, or use device='cpu'"
        )
    if found.type == "cuda":
        make_cc_one_program()
    return found


def require_known_order(state: dict[str, Any]) -> None:
    """Reject a loader's state whose order of samples this code does not make any more.

    Raises:
        ValueError: Says what to do.
    """
    if state["version"] != STATE_VERSION:
        raise ValueError(
            f"loader state has version {state['version']}, this code reads {STATE_VERSION}"
        )
    found = state.get("mix_order", 1)
    if state["weights"] is not None and found != MIX_ORDER:
        raise ValueError(
            f"the checkpoint is of a mixture in order {found}, this code deals order {MIX_ORDER}, "
            "in which every batch has the exact shares: its samples would not go on where they "
            "stopped; finish the run with the release that began it, or start a new one from its "
            "weights with init=RUN"
        )
