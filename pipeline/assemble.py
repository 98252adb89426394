"""Samples to batches: how they are augmented, which pixels they get, and in whose memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from pipeline.batch import Batch, LabelGroup
from pipeline.config import ImageDtype, PipelineConfig
from pipeline.decode.codec import Pixels
from pipeline.gather.params import GatherParams, InputFormat
from pipeline.gather.select import gather
from pipeline.host_pool import HostPool
from pipeline.labels.outputs import copy_columns, empty_outputs
from pipeline.labels.prepare import prepare, without_labels
from pipeline.labels.table import LabelTable, hide_group, hide_labels
from pipeline.view import SampleTable, Table, ViewTable, map_table, samples_at, split, table_bytes

DTYPES: Final = {kind: getattr(torch, kind.value) for kind in ImageDtype}
PREPARED_AT_ONCE: Final = 4096
"""Samples prepared at a time; bounds the float64 copies of their labels."""
IDENTITY_Q16: Final = ((65536, 0, 0), (0, 65536, 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """The samples of one batch, on the device, before their pixels are there."""

    place: Int64[Tensor, "*b"]
    """Their rows of the view and label tables."""
    is_real: Bool[Tensor, "*b"] | None
    """Frames with labels; None = all."""
    batch: Batch | None = None
    """The batch without pixels, where labels never change; else None."""
    params: GatherParams | None = None
    """The gather's parameters, likewise; None beside a batch: rows of the cache are copied."""


class Assembler:
    """Makes batches of samples whose views and labels are on the device.

    Without augmentation no sample ever changes, so all are prepared once and looked up from then
    on, and where every cached crop is the input already, rows are copied instead of gathered.
    Measured on 2 busy cores, frames of 256 px as uint8: 77,000 images/s so, 1,900 if each batch is
    prepared and gathered. Augmented training uses neither.
    """

    def __init__(
        self,
        view: ViewTable,
        labels: LabelTable,
        config: PipelineConfig,
        *,
        augments: bool,
        groups: Sequence[LabelGroup] = (),
    ) -> None:
        """Keep the tables.

        Args:
            view: Every sample, on the device.
            labels: Their labels, on the device.
            config: How they become batches.
            augments: Whether batches are ever augmented.
            groups: Labels beside the core ones, on the device.
        """
        self._groups = {group.NAME: group for group in groups}
        self._view, self._labels, self._config = view, labels, config
        self._device = view.row.device
        self._format = InputFormat(
            size_px=config.input_px,
            mean=(config.mean[0], config.mean[1], config.mean[2]),
            std=(config.std[0], config.std[1], config.std[2]),
            dtype=DTYPES[config.image_dtype],
            channels_last=config.channels_last,
        )
        self._host_pool = HostPool()
        self._prepared: tuple[GatherParams, Batch] | None = None
        """Of every sample, without pixels; None where samples are augmented."""
        self._is_copy = False
        self._out: tuple[GatherParams, Batch] | None = None
        """Where batches are written; None = each to memory of its own."""
        if not augments:
            self._prepare_all()

    @property
    def copies(self) -> bool:
        """Whether an image of a batch is a cached rgb crop byte for byte."""
        return self._is_copy

    def plans(
        self,
        place: Int64[Tensor, "*n"],
        is_real: Bool[Tensor, "*n"] | None,
        lengths: Sequence[int],
    ) -> Iterator[BatchPlan]:
        """Yield the plans of some batches one after another.

        Args:
            place: Samples of all these batches, counted as in the tables.
            is_real: Frames with labels; None = all.
            lengths: Of the batches.
        """
        places = place.split_with_sizes(lengths)
        reals = [None] * len(places) if is_real is None else is_real.split_with_sizes(lengths)
        if self._prepared is None:
            for one, real in zip(places, reals, strict=True):
                yield BatchPlan(place=one, is_real=real)
            return
        # Looked up at once: calls cost more than the bytes of a few labels.
        batch = _rows_of(self._prepared[1], place)
        if is_real is not None:
            batch = without_labels(batch, is_real)
        params = None if self._is_copy else split(_rows_of(self._prepared[0], place), lengths)
        for i, own in enumerate(split(batch, lengths)):
            yield BatchPlan(
                place=places[i],
                is_real=reals[i],
                batch=own,
                params=None if params is None else params[i],
            )

    @property
    def nbytes(self) -> int:
        """Memory of the tables, on the device."""
        tables: list[SampleTable] = [self._view, self._labels, *self._groups.values()]
        return sum(table_bytes(table) for table in [*tables, *(self._prepared or ())])

    def labels(self, plan: BatchPlan) -> Batch:
        """Return the samples unaugmented; ``image`` has no pixels."""
        batch = plan.batch
        if batch is None:
            batch = prepare(
                self._view, self._labels, plan.place, None, self._config, is_real=plan.is_real
            )[1]
        return self._finished(plan, batch, batch.image)

    def write_into(self, batch: Batch | None) -> None:
        """Write further batches into the memory of this one; None = each into its own."""
        self._out = None
        if batch is not None:
            shape, num_hands = tuple(batch.sample_id.shape), batch.is_right.shape[-1]
            self._out = empty_outputs(shape, num_hands, self._device)[0], batch

    def batch(
        self, plan: BatchPlan, pixels: Pixels, where: Int64[Tensor, "*b"] | None, draw: int | None
    ) -> Batch:
        """Return the samples with their images; never waits for the device.

        Args:
            plan: The samples.
            pixels: Where their crops are.
            where: Rows of ``pixels``; None = all of them in order, which nobody else uses.
            draw: Number that the augmentation depends on; None = none.
        """
        if self._out is None:
            return self._made(plan, pixels, where, draw)
        made, place = self._made(plan, pixels, where, draw), self._out[1]
        copy_columns(made.tensors(), place.tensors())
        return place

    def _made(
        self, plan: BatchPlan, pixels: Pixels, where: Int64[Tensor, "*b"] | None, draw: int | None
    ) -> Batch:
        params, batch = plan.params, plan.batch
        if batch is not None and params is None:
            assert pixels.rgb is not None
            return self._finished(plan, batch, self._copied(pixels.rgb, where, plan.place.shape))
        if batch is None or params is None:
            number = None if draw is None else torch.full((), draw, device=self._device)
            params, batch = prepare(
                self._view,
                self._labels,
                plan.place,
                number,
                self._config,
                is_real=plan.is_real,
                out=self._out,
            )
        shape, size = plan.place.shape, self._config.input_px
        if where is None:
            where = torch.arange(shape.numel(), device=self._device).view(shape)
        if self._out is not None:
            out = self._out[1].image
        elif self._format.channels_last:
            out = self._empty(*shape, size, size, 3).movedim(-1, -3)
        else:
            out = self._empty(*shape, 3, size, size)
        return self._finished(plan, batch, gather(pixels, where, params, self._format, out=out))

    def change(self, config: PipelineConfig, *, augments: bool) -> None:
        """Go on with another batch size, seed or augmentation."""
        self._config, self._out = config, None
        self._is_copy, self._prepared = False, None
        if not augments:
            self._prepare_all()

    def hide(self, samples: Int64[Tensor, " m"]) -> None:
        """Mark the labels of samples invalid that turned out to have no image."""
        hide_labels(self._labels, samples)
        for group in self._groups.values():
            hide_group(group, samples)
        if self._prepared is not None:
            self._prepare_all()

    def _finished(self, plan: BatchPlan, batch: Batch, image: Tensor) -> Batch:
        """Return the batch with its image and label groups."""
        groups = {}
        shape = plan.place.shape
        for name, rows in self._groups.items():
            found = rows.at(plan.place.flatten()).moved(batch.R_input_from_cam.view(-1, 3, 3))
            found = found.mapped(lambda column: column.view(shape + column.shape[1:]))
            groups[name] = found if plan.is_real is None else found.masked(plan.is_real)
        return replace(batch, image=image, groups=groups)

    def _copied(
        self, rgb: UInt8[Tensor, "n c c 3"], where: Int64[Tensor, "*b"] | None, shape: torch.Size
    ) -> UInt8[Tensor, "*b 3 c c"]:
        if where is not None:
            if self._out is not None:
                out = self._out[1].image.movedim(-3, -1).view(-1, *rgb.shape[1:])
            else:
                out = self._empty(shape.numel(), *rgb.shape[1:])
            rgb = torch.index_select(rgb, 0, where.flatten(), out=out)
        return rgb.view(shape + rgb.shape[1:]).movedim(-1, -3)

    def _empty(self, *shape: int) -> Float[Tensor, "..."] | UInt8[Tensor, "..."]:
        dtype: torch.dtype = self._format.dtype
        if self._device.type == "cpu":
            return self._host_pool.empty(shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _prepare_all(self) -> None:
        """Prepare every sample unaugmented, and see whether its cached crop is the input."""
        self._prepared = None  # the old ones first: there is memory for one of them
        num, num_hands = self._labels.is_right.shape
        params, batch = empty_outputs((num,), num_hands, self._device)
        parts = torch.split(torch.arange(num, device=self._device), PREPARED_AT_ONCE)
        lengths = [len(some) for some in parts]
        outs = zip(split(params, lengths), split(batch, lengths), strict=True)
        for some, out in zip(parts, outs, strict=True):
            prepare(self._view, self._labels, some, None, self._config, out=out)
        self._prepared = params, batch
        identity = torch.tensor(IDENTITY_Q16, dtype=torch.int32, device=self._device)
        self._is_copy = (
            self._format.dtype is torch.uint8
            and self._format.channels_last
            and self._config.input_px == self._config.cache.size_px
            and bool((params.A_q16 == identity).all())
        )


def _rows_of(table: Table, place: Int64[Tensor, "*n"]) -> Table:
    """Return rows of a table, [n] or windows [n, t]."""
    rows = samples_at(table, place.flatten())
    if place.ndim == 1:
        return rows
    return map_table(rows, lambda column: column.view(place.shape + column.shape[1:]))
