"""The loader: batches of a store's split, all of it resident on the device.

    loader = Loader(PipelineConfig(store="build/freihand.zarr"), device=torch.device("cuda"))
    for batch in loader:                # training: epoch after epoch, without end
        ...
    scores = Loader(config, device=device, training=False)     # evaluation: each sample once

After the first fill a batch costs no disk, no decode and no wait for the device.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from jaxtyping import Int64
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from model.geometry.crop import compose, invert
from model.hand import JointSet
from pipeline import resident
from pipeline.augment import draw, identity, input_affine
from pipeline.batch import Batch
from pipeline.config import ImageDtype, OnBadImage, PipelineConfig, ViewKind
from pipeline.gather import InputFormat, gather, gather_params
from pipeline.labels import move_labels
from pipeline.order import check_batch_size, epoch_batches, owned_samples, steps_per_epoch
from pipeline.store.reader import open_store
from pipeline.view import build_view, samples_at, split_rows

log = logging.getLogger(__name__)
STATE_VERSION: Final = 1
DTYPES: Final = {
    ImageDtype.float32: torch.float32,
    ImageDtype.bfloat16: torch.bfloat16,
    ImageDtype.float16: torch.float16,
}


class Loader:
    """Batches of one split on one device.

    In training every epoch has its own order and augmentation, a pure function of (seed, epoch,
    sample id), and whole batches only. In evaluation the samples come once, in the split's order,
    unaugmented, and the last batch may be short.

    With W ranks every process makes its own loader: it holds only its share of the samples and
    gives ``batch_size / W`` of every global batch, which is the same batch whatever W is. In
    evaluation each rank gives its share, and the shares are the split.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        device: torch.device,
        training: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Open the store and fill the cache, with a progress bar where there is a terminal.

        Raises:
            ValueError: If configuration and store do not fit, or memory does not suffice.
            StoreError: If the store cannot be read; ``BadImageError`` if an image cannot.
        """
        self.config = config
        self.device = device
        self.training = training
        store = open_store(config.store, reader=config.cache.reader.value)
        rows = split_rows(store, config.split, config.subset)
        view = build_view(store, rows, config.view, config.cache.size_px, training=training)
        self.num_samples = len(view)
        """Samples of all ranks together."""
        self.content_sha256 = store.attributes.content_sha256
        self.joint_set = JointSet[store.attributes.joint_set]
        owned = owned_samples(len(view), rank=rank, world=world)
        self._rank, self._world = rank, world
        self._batch_size = max(1, config.batch_size // world)
        self._local = torch.full((len(view),), -1).index_copy(0, owned, torch.arange(len(owned)))
        if training:
            check_batch_size(len(view), config.batch_size, world=world)  # before the long fill
        cache = config.cache
        if not training:
            cache = dataclasses.replace(cache, on_bad_image=OnBadImage.stop)
        with _progress_bar(f"cache {config.split}") as progress:
            self._resident = resident.fill(
                store, samples_at(view, owned), config.view.kind, cache, device, progress=progress
            )
        store.close()
        log.info("%s", self.summary())
        self._format = InputFormat(
            size_px=config.input_px,
            mean=(config.mean[0], config.mean[1], config.mean[2]),
            std=(config.std[0], config.std[1], config.std[2]),
            dtype=DTYPES[config.image_dtype],
            channels_last=config.channels_last,
        )
        self._epoch, self._step = 0, 0

    def __len__(self) -> int:
        """Return the batches of an epoch (training) or of the split (evaluation)."""
        if self.training:
            return steps_per_epoch(self.num_samples, self.config.batch_size)
        return len(self._in_order())

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the current state on: without end in training, else once."""
        if not self.training:
            yield from self.epoch(0)
            return
        while True:
            yield from self.epoch(self._epoch, self._step)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from ``first_step`` on; the state follows."""
        if self.training:
            samples = epoch_batches(
                self.num_samples,
                self.config.batch_size,
                self.config.seed,
                epoch,
                rank=self._rank,
                world=self._world,
            )
            batches = list(self._local[samples].to(self.device))
        else:
            batches = self._in_order()
        for step in range(first_step, len(batches)):
            batch = self._batch(batches[step], epoch if self.training else None)
            self._epoch, self._step = epoch, step + 1
            yield batch
        self._epoch, self._step = epoch + 1, 0

    def label_batches(self) -> Iterator[Batch]:
        """Yield every sample of this rank once, unaugmented; ``image`` has no pixels."""
        for index in self._in_order():
            yield self._batch(index, None, with_image=False)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is: the next batch is ``step`` of ``epoch``."""
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
            ValueError: If the order would be another one; names what changed.
        """
        if state["version"] != STATE_VERSION:
            raise ValueError(
                f"loader state has version {state['version']}, this code reads {STATE_VERSION}"
            )
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(
                    f"checkpoint was written with {name}={state[name]}, this run has {value}: the "
                    "order of the samples would differ; use the same store, split, subset, view, "
                    "batch_size and seed, or start a new run"
                )
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def summary(self) -> str:
        """Return one line about what is cached."""
        held = self._resident
        pixels = held.pixels
        return (
            f"cached {len(pixels)} samples of {self.config.store} split={self.config.split}: "
            f"{decimal(pixels.nbytes)} on {self.device}, {held.num_images} images at "
            f"{held.num_images / held.seconds:.0f}/s"
        )

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.config.seed,
            "num_samples": self.num_samples,
            "batch_size": self.config.batch_size,
        }

    def _in_order(self) -> list[Int64[Tensor, " b"]]:
        positions = torch.arange(len(self._resident.pixels), device=self.device)
        return list(torch.split(positions, self._batch_size))

    def _batch(
        self, index: Int64[Tensor, " b"], epoch: int | None, *, with_image: bool = True
    ) -> Batch:
        """Return the cached samples at ``index``, augmented unless ``epoch`` is None.

        Nothing in it waits for the device.
        """
        config, held = self.config, self._resident
        view, labels = samples_at(held.view, index), samples_at(held.labels, index)
        if epoch is None:
            params = identity(len(index), self.device)
        else:
            params = draw(config.augment, config.seed, epoch, view.sample_id)
        if config.mirror_left and config.view.kind is ViewKind.hand:
            mirrored = ~labels.is_right[:, 0]
        else:
            mirrored = torch.zeros_like(view.sample_id, dtype=torch.bool)
        A_input_from_frame = input_affine(
            params, view.center_px, view.size_px, mirrored, config.input_px
        )
        image = torch.empty(len(index), 3, 0, 0, device=self.device)
        if with_image:
            A_cache_from_input = compose(view.A_cache_from_frame, invert(A_input_from_frame))
            image = gather(
                held.pixels,
                index,
                gather_params(A_cache_from_input, params, config.input_px),
                self._format,
            )
        return move_labels(
            labels,
            view,
            image,
            A_input_from_frame,
            params.rotation_rad,
            mirrored,
            held.joint_set,
        )


@contextmanager
def _progress_bar(description: str) -> Iterator[resident.Progress]:
    """Show images done, images per second and time left on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(description, total=None, rate=0)
        begin = time.perf_counter()

        def show(done: int, total: int) -> None:
            rate = done / (time.perf_counter() - begin)
            bar.update(task, completed=done, total=total, rate=rate)

        yield show
