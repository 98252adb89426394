"""Loss groups of the toy family: the shared joint terms and one of its own."""

from model.geometry.palm import aperture_m
from tests.train.toy.labels import Apertures
from train.losses.families import regressor
from train.losses.groups import eager_terms
from train.losses.inputs import JOINT_TERMS, GroupLoss
from train.losses.plan import Group, LossInputs, Weights
from train.losses.terms.reduce import mean_valid, select


def aperture(inputs: LossInputs, weights: Weights) -> GroupLoss | None:
    """Return the difference of the opening between thumb and index finger, metres."""
    if inputs.prediction.hands is None:
        return None
    labels = Apertures.of(inputs.batch)
    known = labels.has_aperture
    off = aperture_m(inputs.prediction.hands.joints_3d) - labels.aperture_m
    value = mean_valid(select(known, off).abs(), known)
    return eager_terms({"aperture": (value, known)}, weights.names, weights.lam)


GROUPS = (
    Group(names=JOINT_TERMS, compute=regressor.joints),
    Group(names=("aperture",), compute=aperture, weights={"aperture": 2.0}),
)
