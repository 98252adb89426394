"""The joint errors behind the scores of a run (``train.evaluate.metrics.hand``), hand by hand."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64

from model.hand import NUM_HANDS, ROOT
from model.prediction import HandPrediction
from pipeline.batch import Batch
from train.evaluate.metrics.errors import distance
from train.evaluate.metrics.hand import MIN_JOINTS_ALIGNED, aligned_to, root_relative_mm
from train.evaluate.protocols.details import AUC_MAX_MM, Detail


@dataclass(slots=True)
class HandErrors:
    """Errors of a stream of batches; samples are numbered row * 2 + slot, 0 right and 1 left."""

    samples: list[int] = field(default_factory=list)
    relative: list[Float64[np.ndarray, "b 21"]] = field(default_factory=list)
    aligned: list[Float64[np.ndarray, "b 21"]] = field(default_factory=list)

    def update(self, hands: HandPrediction, batch: Batch) -> None:
        """Add a batch (``Batch.frames``); hands without a label are left out."""
        valid = batch.joint_valid & batch.has_joints[..., None]
        keep = valid.any(-1)
        ids = batch.sample_id[:, None].expand(keep.shape)
        if keep.shape[1] == NUM_HANDS:
            slots = torch.arange(NUM_HANDS, device=ids.device)
            ids = ids // NUM_HANDS * NUM_HANDS + slots
        joints, target, valid = hands.joints_3d[keep], batch.joints_3d[keep], valid[keep]
        relative = root_relative_mm(joints, target, joints[:, ROOT], target[:, ROOT])
        apart = 1000 * distance(aligned_to(joints, target, valid), target)
        has_wrist = valid & valid[:, ROOT, None]
        is_alignable = valid & (valid.sum(-1, keepdim=True) >= MIN_JOINTS_ALIGNED)
        self.samples += ids[keep].tolist()
        self.relative.append(relative.where(has_wrist, torch.nan).cpu().numpy())
        self.aligned.append(apart.where(is_alignable, torch.nan).cpu().numpy())

    def details(self) -> list[Detail]:
        """Return everything added so far."""
        return [
            Detail(
                name=f"hand/{name}",
                errors=np.concatenate(parts),
                max_error=AUC_MAX_MM,
                samples=self.samples,
            )
            for name, parts in (("mpjpe_mm", self.relative), ("pa_mpjpe_mm", self.aligned))
            if parts
        ]
