"""HO-3D's official protocol (``eval.py`` of v2 and v3): FreiHAND's, and a second alignment.

Joints are in MANO's order (16 joints of the skeleton, then the fingertips, thumb to little),
metres; the axes do not matter as long as prediction and truth agree. All of
``train.evaluate.metrics.freihand`` holds, quirks included. ``st_mpjpe_mm`` and ``st_auc_j``: the
prediction scaled to the truth's palm length (joint 0 to joint 4) and translated to its wrist,
without rotation.

Quirk of the second alignment: a prediction whose joints 0 and 4 coincide cannot be scaled to the
truth and is multiplied by its palm length in metres instead. strict: such a sample is left out of
these two numbers, which are None where no sample is left.

Source:
    Hampali et al. 2020, HOnnotate; the published evaluation of HO-3D, from its formulas.
"""

from dataclasses import asdict, dataclass, field

from jaxtyping import Float
from torch import Tensor

from model.hand import NUM_JOINTS
from train.evaluate.metrics.align import align_scale_translation, palm_length
from train.evaluate.metrics.errors import (
    ErrorSums,
    add,
    auc,
    distance,
    error_sums,
    mean_error,
    thresholds,
    zero_sums,
)
from train.evaluate.metrics.freihand import (
    AUC_MAX_M,
    FreihandAccumulator,
    FreihandScores,
    official_mesh,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ho3dScores(FreihandScores):
    """FreiHAND's scores, and those after scale-translation alignment."""

    st_mpjpe_mm: float | None
    st_auc_j: float | None
    num_without_palm: int
    """Samples whose predicted joints 0 and 4 coincide."""


@dataclass(kw_only=True, slots=True)
class Ho3dAccumulator:
    """Scores of a stream of batches; the same numbers as all samples at once."""

    strict: bool = False
    """True: the mathematically correct scores instead of the official ones."""
    num_without_palm: int = 0
    shared: FreihandAccumulator = field(init=False)
    scale_translation: ErrorSums | None = None
    """Metres; None before the first batch."""

    def __post_init__(self) -> None:
        self.shared = FreihandAccumulator(strict=self.strict)

    def update(
        self,
        joints: Float[Tensor, "b 21 3"],
        target: Float[Tensor, "b 21 3"],
        vertices: Float[Tensor, "b n 3"],
        target_vertices: Float[Tensor, "b 778 3"],
    ) -> None:
        """Add a batch of samples. Waits for the device.

        Args:
            joints: Predicted joints in MANO's order, metres.
            target: True joints, in the same order and axes.
            vertices: Predicted mesh, metres; any number of vertices.
            target_vertices: True mesh.

        Raises:
            ValueError: If a shape differs, a value is not finite, or the vertex count is not that
                of the batches before.
        """
        self.shared.update(joints, target, vertices, target_vertices)
        if self.scale_translation is None:
            self.scale_translation = zero_sums(NUM_JOINTS, thresholds(AUC_MAX_M), joints.device)
        errors = distance(align_scale_translation(joints, target), target)
        has_palm = palm_length(joints) > 0
        self.num_without_palm += int((~has_palm).sum())
        valid = has_palm[:, None].expand_as(errors) if self.strict else None
        sums = self.scale_translation
        add(sums, error_sums(errors, valid, sums.thresholds))

    def summary(self) -> Ho3dScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no sample was added.
        """
        shared = self.shared.summary()
        sums = self.scale_translation
        has_errors = sums is not None and bool(sums.count.any())
        return Ho3dScores(
            **asdict(shared),
            st_mpjpe_mm=1000 * mean_error(sums) if sums is not None and has_errors else None,
            st_auc_j=auc(sums) if sums is not None and has_errors else None,
            num_without_palm=self.num_without_palm,
        )


def official(scores: Ho3dScores) -> dict[str, float]:
    """Return the scores by the names and in the units (cm) of the official ``scores.txt``.

    A missing score is -1 m or -1, as in the official tool for meshes with another vertex count.
    """
    st_mm, st_auc = scores.st_mpjpe_mm, scores.st_auc_j
    return {
        "xyz_mean3d": scores.mpjpe_mm / 10,
        "xyz_auc3d": scores.auc_j,
        "xyz_procrustes_al_mean3d": scores.pa_mpjpe_mm / 10,
        "xyz_procrustes_al_auc3d": scores.pa_auc_j,
        "xyz_scale_trans_al_mean3d": -100.0 if st_mm is None else st_mm / 10,
        "xyz_scale_trans_al_auc3d": -1.0 if st_auc is None else st_auc,
        **official_mesh(scores),
    }
