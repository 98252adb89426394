"""Everything of a batch but its pixels: sample augmentation, place crops, transform labels.

``prepare_eager`` is the reference, and runs on CPUs; on a GPU ``pipeline.labels.prepare_triton``
does the same in one kernel. Both compute in float64 and return float32.
"""

from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from model.geometry.crop import compose, invert
from pipeline.batch import Batch
from pipeline.config import PipelineConfig, ViewKind
from pipeline.gather.augment import AugmentParams, draw, identity, input_affine
from pipeline.gather.params import GatherParams, gather_params
from pipeline.labels.outputs import columns_of, copy_columns
from pipeline.labels.table import LabelTable, move_labels
from pipeline.view import Table, ViewTable, map_table, samples_at


def prepare(
    view: ViewTable,
    labels: LabelTable,
    index: Int64[Tensor, "*b"],
    epoch: Int64[Tensor, ""] | None,
    config: PipelineConfig,
    *,
    is_real: Bool[Tensor, "*b"] | None = None,
    out: tuple[GatherParams, Batch] | None = None,
) -> tuple[GatherParams, Batch]:
    """Return the gather's parameters and the batch without pixels; never synchronises.

    The frames of a window [b, t] share one augmentation, sampled by the id of the first frame.

    Args:
        view: Every sample, on the device.
        labels: Their labels, on the device.
        index: Rows of both: [b] or windows [b, t].
        epoch: Counter that seeds the augmentation with seed and sample id; None = no augmentation.
        config: Seed, ranges, input size, mirroring.
        is_real: False marks all labels of a frame invalid; None = all real.
        out: Dense tensors of these shapes and types to write to; None makes some.
    """
    if index.device.type == "cuda":
        from pipeline.labels import prepare_triton

        return prepare_triton.prepare(view, labels, index, epoch, config, is_real=is_real, out=out)
    made = prepare_eager(view, labels, index, epoch, config, is_real=is_real)
    if out is None:
        return made
    copy_columns(columns_of(made[0]), columns_of(out[0]))
    copy_columns(columns_of(made[1]), columns_of(out[1]))
    return out


def prepare_eager(
    view: ViewTable,
    labels: LabelTable,
    index: Int64[Tensor, "*b"],
    epoch: Int64[Tensor, ""] | None,
    config: PipelineConfig,
    *,
    is_real: Bool[Tensor, "*b"] | None = None,
) -> tuple[GatherParams, Batch]:
    """Compute ``prepare`` in plain torch."""
    frames = index.shape[1] if index.ndim > 1 else 1
    flat = index.flatten()
    view, labels = samples_at(view, flat), samples_at(labels, flat)
    if epoch is None:
        params = identity(len(flat), flat.device)
    else:
        params = draw(config.augment, config.seed, epoch, view.sample_id[::frames])
        params = AugmentParams(
            **{
                field.name: getattr(params, field.name).repeat_interleave(frames, 0)
                for field in fields(params)
            }
        )
    if config.mirror_left and config.view.kind is ViewKind.hand:
        mirrored = ~labels.is_right[:, 0]
    else:
        mirrored = torch.zeros_like(view.sample_id, dtype=torch.bool)
    A_input_from_frame = input_affine(
        params, view.center_px, view.size_px, mirrored, config.input_px
    )
    A_cache_from_input = compose(view.A_cache_from_frame, invert(A_input_from_frame))
    how = gather_params(A_cache_from_input, params, config.input_px)
    batch = move_labels(labels, view, A_input_from_frame, params.rotation_rad, mirrored)
    how, batch = _unflatten(how, index), _unflatten(batch, index)
    return how, batch if is_real is None else without_labels(batch, is_real)


def without_labels(batch: Batch, is_real: Bool[Tensor, "*b"]) -> Batch:
    """Return the batch whose label masks are False where ``is_real`` is."""
    per_hand = is_real[..., None]
    return replace(
        batch,
        is_real=is_real,
        joint_valid=batch.joint_valid & per_hand[..., None],
        has_joints=batch.has_joints & per_hand,
        has_mano=batch.has_mano & per_hand,
        has_beta=batch.has_beta & per_hand,
        has_object=batch.has_object & is_real,
    )


def _unflatten(table: Table, index: Int64[Tensor, "*b"]) -> Table:
    if index.ndim == 1:
        return table
    return map_table(table, lambda column: column.view(index.shape + column.shape[1:]))
