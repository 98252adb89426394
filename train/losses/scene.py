"""Terms of the object, of hand-object relations, and of motion in a window; always eager.

Points are in the camera frame of the input pixels, metres. Object symmetries are ignored: a
symmetric object needs ``train.losses.terms.objects``.

Shape legend: b = images, h = hands, m = objects of the run, p = surface points, t = frames.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.articulation import articulated
from model.geometry.rotation import rotate
from model.hand import LEFT, RIGHT, ROOT
from model.prediction import HandPrediction, ObjectPrediction
from pipeline.batch import Batch
from pipeline.labels.objects import ObjectModels
from train.losses.config import Distance
from train.losses.terms.joints import joints_2d
from train.losses.terms.motion import acceleration, velocity
from train.losses.terms.objects import object_position
from train.losses.terms.reduce import distance, mean_valid, select

NUM_POINTS: Final = 256
"""Surface points that represent an object."""
Term = tuple[Float[Tensor, " b"], Bool[Tensor, "b ..."]]
"""Value of each image, and the mask of the items it is the mean of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surfaces:
    """Sampled surface points of every object of a run, object frame."""

    points: Float[Tensor, "m p 3"]
    moving: Bool[Tensor, "m p"]


def surfaces_of(objects: ObjectModels) -> Surfaces:
    """Return ``NUM_POINTS`` points of each object."""
    return Surfaces(points=objects.points[:, :NUM_POINTS], moving=objects.moving[:, :NUM_POINTS])


@dataclass(frozen=True, kw_only=True, slots=True)
class Posed:
    """Surface points of each image's object relative to its origin, rotated to the camera frame."""

    pred: Float[Tensor, "b p 3"]
    true: Float[Tensor, "b p 3"]
    known: Bool[Tensor, " b"]
    """Whether the object has a label and a shape."""


def posed(pred: ObjectPrediction, batch: Batch, surfaces: Surfaces) -> Posed:
    """Return the points under the predicted and the true pose; 0 where unknown."""
    index = batch.object_id.clamp(min=0)
    points, moving = surfaces.points[index], surfaces.moving[index]
    known = batch.has_object & ~points.isnan().flatten(1).any(1)
    points, R = select(known, points), select(known, batch.object_pose)[..., :3]
    is_articulated = known & ~batch.object_arti_rad.isnan()
    arti = (select(is_articulated, rad) for rad in (pred.arti_rad, batch.object_arti_rad))
    guess, truth = (articulated(points, moving, rad) for rad in arti)
    return Posed(pred=rotate(pred.rotmat, guess), true=rotate(R, truth), known=known)


def object_terms(
    pred: ObjectPrediction,
    batch: Batch,
    shape: Posed,
    kind: Distance = Distance.l1,
    smooth: float = 0.01,
) -> dict[str, Term]:
    """Return the terms of the object that the hands act on.

    ``object_position``: its origin. ``object_points``: surface points relative to the origin.
    ``object_2d``: reprojected surface points, as ``joints_2d``. ``object_arti``: its articulation
    angle, radians.
    """
    valid, known = batch.has_object, shape.known
    t = select(valid, batch.object_pose)[..., 3]
    every_point = known[:, None].expand(shape.true.shape[:2])
    off = distance(shape.pred - shape.true, kind, smooth)
    projected = joints_2d(
        (shape.pred + pred.transl[:, None])[:, None],
        (shape.true + t[:, None])[:, None],
        every_point[:, None],
        batch.K,
        batch.image.shape[-1],
    )
    is_articulated = valid & ~batch.object_arti_rad.isnan()
    arti = select(is_articulated, pred.arti_rad) - select(is_articulated, batch.object_arti_rad)
    return {
        "object_position": (
            object_position(pred.transl[:, None], t[:, None], valid[:, None], kind, smooth),
            valid,
        ),
        "object_points": (mean_valid(off, every_point), known),
        "object_2d": (projected, known),
        "object_arti": (arti.abs(), is_articulated),
    }


def between(
    hands: HandPrediction,
    obj: ObjectPrediction,
    batch: Batch,
    kind: Distance = Distance.l1,
    smooth: float = 0.01,
) -> Term:
    """Return the mean error of three relative positions, metres.

    From the right wrist to the object's origin and to the left wrist, and from the left wrist to
    the object: the relations that must be accurate for hands and object to touch.
    """
    root = batch.joint_valid[:, :, ROOT] & batch.has_joints
    known = torch.cat((root, batch.has_object[:, None]), 1)
    pred = torch.cat((hands.joints_3d[:, :, ROOT], obj.transl[:, None]), 1)
    true = torch.cat((batch.joints_3d[:, :, ROOT], batch.object_pose[:, None, :, 3]), 1)
    off = select(known, pred) - select(known, true)
    ends = ((RIGHT, 2), (RIGHT, LEFT), (LEFT, 2))
    valid = torch.stack([known[:, a] & known[:, b] for a, b in ends], 1)
    vectors = torch.stack([off[:, b] - off[:, a] for a, b in ends], 1)
    return mean_valid(distance(select(valid, vectors), kind, smooth), valid), valid


def motion_terms(
    hands: HandPrediction,
    obj: ObjectPrediction | None,
    batch: Batch,
    shape: Posed | None,
    num_frames: int,
) -> dict[str, Term]:
    """Return ``velocity`` and ``acceleration`` of joints and object points in each frame's window.

    The object contributes as many points as a hand has joints.
    """
    points, truth = hands.joints_3d, batch.joints_3d
    valid = batch.joint_valid & batch.has_joints[..., None]
    if obj is not None and shape is not None:
        num = points.shape[2]
        true_t = select(shape.known, batch.object_pose)[..., 3]
        guess = shape.pred[:, :num] + obj.transl[:, None]
        points = torch.cat((points, guess[:, None]), 1)
        truth = torch.cat((truth, (shape.true[:, :num] + true_t[:, None])[:, None]), 1)
        valid = torch.cat((valid, shape.known[:, None, None].expand(-1, 1, num)), 1)
    over = [x.view(-1, num_frames, *x.shape[1:]) for x in (points, truth, valid)]
    known = over[2].flatten(2)
    pairs = known[:, 1:] & known[:, :-1]
    triples = pairs[:, 1:] & pairs[:, :-1]

    def of_frames(value: Tensor, seen: Tensor) -> Term:
        return value.repeat_interleave(num_frames), seen.repeat_interleave(num_frames, 0)

    return {
        "velocity": of_frames(velocity(*over), pairs),
        "acceleration": of_frames(acceleration(*over), triples),
    }
