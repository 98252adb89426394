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
from pipeline.labels.prepare import prepare, without_labels
from pipeline.labels.table import LabelTable, hide_group, hide_labels
from pipeline.packed import Packed, pack
from pipeline.view import ViewTable, concatenated, split

DTYPES: Final = {kind: getattr(torch, kind.value) for kind in ImageDtype}
PACK_AT_ONCE: Final = 4096
"""Samples whose labels are moved at a time before they are packed."""
IDENTITY_Q16: Final = ((65536, 0, 0), (0, 65536, 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The samples of one batch, on the device."""

    place: Int64[Tensor, "*b"]
    is_real: Bool[Tensor, "*b"] | None
    """None = all."""
    batch: Batch | None = None
    """Without pixels, where labels never change."""
    how: GatherParams | None = None
    """Likewise; None beside a batch: rows are copied."""


class Assembler:
    """Makes batches of samples whose views and labels are on the device."""

    def __init__(
        self,
        view: ViewTable,
        labels: LabelTable,
        config: PipelineConfig,
        *,
        augments: bool,
        groups: Sequence[LabelGroup] = (),
    ) -> None:
        """Keep the tables; without augmentation, move all labels once: they never change.

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
        self._fixed: tuple[Packed[GatherParams], Packed[Batch]] | None = None
        self._is_copy = False
        if not augments:
            self._fix()

    @property
    def copies(self) -> bool:
        """Whether an image of a batch is a cached rgb crop byte for byte."""
        return self._is_copy

    def choose(
        self,
        place: Int64[Tensor, "*n"],
        is_real: Bool[Tensor, "*n"] | None,
        lengths: Sequence[int],
    ) -> Iterator[Chosen]:
        """Yield the samples of some batches one after another, as far as they are fixed.

        Args:
            place: Samples of all these batches, counted as in the tables.
            is_real: Frames with labels; None = all.
            lengths: Of the batches.
        """
        places = place.split_with_sizes(lengths)
        reals = [None] * len(places) if is_real is None else is_real.split_with_sizes(lengths)
        if self._fixed is None:
            for one, real in zip(places, reals, strict=True):
                yield Chosen(place=one, is_real=real)
            return
        # Looked up at once: calls cost more than the bytes of a few labels.
        batches = split(_hidden(self._fixed[1].at(place), is_real), lengths)
        how = None if self._is_copy else split(self._fixed[0].at(place), lengths)
        for i, batch in enumerate(batches):
            yield Chosen(
                place=places[i], is_real=reals[i], batch=batch, how=None if how is None else how[i]
            )

    def labels(self, chosen: Chosen) -> Batch:
        """Return the samples unaugmented; ``image`` has no pixels."""
        batch = chosen.batch
        if batch is None:
            batch = prepare(
                self._view, self._labels, chosen.place, None, self._config, is_real=chosen.is_real
            )[1]
        return self._finished(chosen, batch, batch.image)

    def batch(
        self, chosen: Chosen, pixels: Pixels, where: Int64[Tensor, "*b"] | None, draw: int | None
    ) -> Batch:
        """Return the samples with their images; never waits for the device.

        Args:
            chosen: The samples.
            pixels: Where their crops are.
            where: Rows of ``pixels``; None = all of them in order, which nobody else uses.
            draw: Number that the augmentation depends on; None = none.
        """
        how, batch = chosen.how, chosen.batch
        if batch is not None and how is None:
            assert pixels.rgb is not None
            return self._finished(chosen, batch, self._rows(pixels.rgb, where, chosen.place.shape))
        if batch is None or how is None:
            number = None if draw is None else torch.full((), draw, device=self._device)
            how, batch = prepare(
                self._view, self._labels, chosen.place, number, self._config, is_real=chosen.is_real
            )
        shape, size = chosen.place.shape, self._config.input_px
        if where is None:
            where = torch.arange(shape.numel(), device=self._device).view(shape)
        if self._format.channels_last:
            out = self._empty(*shape, size, size, 3).movedim(-1, -3)
        else:
            out = self._empty(*shape, 3, size, size)
        return self._finished(chosen, batch, gather(pixels, where, how, self._format, out=out))

    def change(self, config: PipelineConfig, *, augments: bool) -> None:
        """Go on with another seed or augmentation."""
        self._config = config
        self._is_copy, self._fixed = False, None
        if not augments:
            self._fix()

    def hide(self, samples: Int64[Tensor, " m"]) -> None:
        """Take the labels of samples back that turned out to have no image."""
        hide_labels(self._labels, samples)
        for group in self._groups.values():
            hide_group(group, samples)
        if self._fixed is not None:
            self._fix()

    def _finished(self, chosen: Chosen, batch: Batch, image: Tensor) -> Batch:
        """Return the batch with its image and label groups."""
        groups = {}
        shape = chosen.place.shape
        for name, rows in self._groups.items():
            found = rows.at(chosen.place.flatten()).moved(batch.R_input_from_cam.view(-1, 3, 3))
            found = found.mapped(lambda column: column.view(shape + column.shape[1:]))
            groups[name] = found if chosen.is_real is None else found.masked(chosen.is_real)
        return replace(batch, image=image, groups=groups)

    def _rows(
        self, rgb: UInt8[Tensor, "n c c 3"], where: Int64[Tensor, "*b"] | None, shape: torch.Size
    ) -> UInt8[Tensor, "*b 3 c c"]:
        if where is not None:
            out = self._empty(shape.numel(), *rgb.shape[1:])
            rgb = torch.index_select(rgb, 0, where.flatten(), out=out)
        return rgb.view(shape + rgb.shape[1:]).movedim(-1, -3)

    def _empty(self, *shape: int) -> Float[Tensor, "..."] | UInt8[Tensor, "..."]:
        dtype: torch.dtype = self._format.dtype
        if self._device.type == "cpu":
            return self._host_pool.empty(shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _fix(self) -> None:
        everything = torch.arange(len(self._view), device=self._device)
        done = [
            prepare(self._view, self._labels, some, None, self._config)
            for some in torch.split(everything, PACK_AT_ONCE)
        ]
        how = concatenated([params for params, _ in done])
        self._fixed = pack(how), pack(concatenated([batch for _, batch in done]))
        identity = torch.tensor(IDENTITY_Q16, dtype=torch.int32, device=self._device)
        self._is_copy = (
            self._format.dtype is torch.uint8
            and self._format.channels_last
            and self._config.input_px == self._config.cache.size_px
            and bool((how.A_q16 == identity).all())
        )


def _hidden(batch: Batch, is_real: Bool[Tensor, "*b"] | None) -> Batch:
    return batch if is_real is None else without_labels(batch, is_real)
