"""Inputs of every loss term, drawn at random, and what is known about each of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from tests.reference import losses, losses_scene
from train.losses.config import Distance
from train.losses.terms import contact, joints, mano, motion, objects, physics, regularizers

Arguments = dict[str, Any]
B: Final = 4
"""Samples of a case."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One term: how to draw its arguments (numpy), and what it does with them."""

    term: Callable[..., Tensor]
    oracle: Callable[..., Any]
    draw: Callable[[np.random.Generator], Arguments]
    masks: Mapping[str, str | Callable[[Arguments], np.ndarray]]
    """Arguments that a mask covers: the mask's name, or a function that makes it."""
    leaves: tuple[str, ...]
    """Arguments with a gradient."""
    shared: tuple[str, ...] = ()
    """Arguments without a sample axis."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the term takes and the oracle is given as text."""

    def __str__(self) -> str:
        """Return the name of the test."""
        words = [str(getattr(value, "name", value)) for value in self.options.values()]
        return "-".join([self.term.__name__, *words])


def call(case: Case, arguments: Arguments, **leaves: Tensor) -> Tensor:
    """Return the term of arguments as float64 tensors."""
    given = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    return case.term(**(given | leaves), **case.options)


def mask_of(case: Case, arguments: Arguments, name: str) -> np.ndarray:
    """Return the mask of an argument, with axes of one at its end."""
    how = case.masks[name]
    mask = arguments[how] if isinstance(how, str) else how(arguments)
    return np.asarray(mask).reshape(mask.shape + (1,) * (arguments[name].ndim - mask.ndim))


def some(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return a mask in which the last sample has nothing."""
    mask = rng.random(shape) < 0.7
    mask[-1] = False
    return mask


def rotations(rng: np.random.Generator, *shape: int) -> np.ndarray:
    count = int(np.prod(shape))
    return Rotation.random(count, random_state=rng).as_matrix().reshape(*shape, 3, 3)


def _points(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.normal(0, 0.05, (*shape, 3)) + np.array([0.02, -0.01, 0.5]))


def _camera(rng: np.random.Generator) -> np.ndarray:
    K = np.tile(np.eye(3), (B, 1, 1))
    K[:, :2] += rng.normal(0, 3, (B, 2, 3))
    K[:, 0, 0] += 300
    K[:, 1, 1] += 310
    K[:, :2, 2] += 60
    return K


def _joints(rng: np.random.Generator) -> Arguments:
    return {
        "pred": _points(rng, B, 2, 21),
        "target": _points(rng, B, 2, 21),
        "valid": some(rng, B, 2, 21),
    }


def _weighted(rng: np.random.Generator) -> Arguments:
    return _joints(rng) | {"weight": rng.random(21) * (np.arange(21) != 3)}


def _projected(rng: np.random.Generator) -> Arguments:
    return _weighted(rng) | {"K": _camera(rng), "input_px": 128}


def _any_valid(arguments: Arguments) -> np.ndarray:
    valid = arguments["valid"]
    return np.asarray(valid.reshape(len(valid), -1).any(1))


JOINTS: Final = {"pred": "valid", "target": "valid"}
ROW: Final = {"pred": "valid", "target": "valid"}


def _vertices(rng: np.random.Generator) -> Arguments:
    return {
        "pred": _points(rng, B, 2, 778),
        "target": _points(rng, B, 2, 778),
        "pred_root": _points(rng, B, 2),
        "target_root": _points(rng, B, 2),
        "valid": some(rng, B, 2),
    }


def _theta(rng: np.random.Generator) -> Arguments:
    return {
        "pred": rotations(rng, B, 2, 16),
        "target": rotations(rng, B, 2, 16),
        "valid": some(rng, B, 2),
    }


def _limits(rng: np.random.Generator) -> Arguments:
    limits = np.sort(rng.normal(0, 0.5, (2, 15, 3)), 0)
    return {
        "theta": rotations(rng, B, 2, 16),
        "frames": rotations(rng, B, 2, 15),
        "low_rad": limits[0],
        "high_rad": limits[1],
        "valid": some(rng, B, 2),
    }


def _symmetric(rng: np.random.Generator) -> Arguments:
    symmetries = np.concatenate([rotations(rng, B, 3, 5), rng.normal(0, 0.02, (B, 3, 5, 3, 1))], -1)
    symmetries[:, :, 0] = np.eye(3, 4)
    is_one = rng.random((B, 3, 5)) < 0.5
    is_one[:, :, 0] = True
    return {
        "pred_R": rotations(rng, B, 3),
        "target_R": rotations(rng, B, 3),
        "valid": some(rng, B, 3),
        "symmetries": symmetries,
        "symmetry_valid": is_one,
    }


def _model(rng: np.random.Generator) -> Arguments:
    return {
        "points": rng.normal(0, 0.05, (B, 2, 30, 3)),
        "pred_R": rotations(rng, B, 2),
        "pred_t": _points(rng, B, 2),
        "target_R": rotations(rng, B, 2),
        "target_t": _points(rng, B, 2),
        "valid": some(rng, B, 2),
    }


def _grid(rng: np.random.Generator, mask: str) -> Arguments:
    """Three rough fields around 0, and points in, on the border of and outside their boxes."""
    low = rng.normal(-0.1, 0.01, (3, 1, 3))
    row = rng.integers(0, 3, B)
    row[-1] = -1  # no object
    return {
        "points": rng.normal(0, 0.08, (B, 12, 3)),
        "grids": rng.normal(0, 0.02, (3, 6, 6, 6)),
        "boxes": np.concatenate([low, low + 0.2], 1),
        "row": row,
        mask: some(rng, B, 12),
    }


def _grasp(rng: np.random.Generator) -> Arguments:
    return {
        "forces": rng.normal(0, 2, (B, 8, 3)),
        "anchors": _points(rng, B, 8),
        "gap_m": rng.random((B, 8)) * 0.02,
        "centre": _points(rng, B),
        "weight": rng.normal(0, 3, (B, 3)),
        "size_m": 0.1 + rng.random(B),
        "valid": np.array([True, False, True, False]),
    }


def _window(rng: np.random.Generator) -> Arguments:
    return {
        "pred": _points(rng, B, 6, 2, 5),
        "target": _points(rng, B, 6, 2, 5),
        "valid": some(rng, B, 6, 2, 5),
    }


def _poses(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rotations(rng, B, 6), rng.normal(0, 1, (B, 6, 3, 1))], -1)


def _attention(rng: np.random.Generator) -> Arguments:
    scores = np.exp(rng.normal(0, 2, (B, 2, 3, 7)))
    return {"attention": scores / scores.sum(-1, keepdims=True), "valid": some(rng, B)}


def _case(
    term: Callable[..., Tensor],
    draw: Callable[[np.random.Generator], Arguments],
    masks: Mapping[str, str | Callable[[Arguments], np.ndarray]],
    *leaves: str,
    shared: tuple[str, ...] = (),
    **options: Any,
) -> Case:
    name = term.__name__
    oracle = getattr(losses, name, None) or getattr(losses_scene, name)
    return Case(
        term=term, oracle=oracle, draw=draw, masks=masks, leaves=leaves, shared=shared,
        options=options,
    )  # fmt: skip


_MODEL: Final = dict.fromkeys(("points", "pred_R", "pred_t", "target_R", "target_t"), "valid")

CASES: Final = (
    _case(joints.joints_abs, _joints, JOINTS, "pred"),
    *(
        _case(term, _weighted, JOINTS, "pred", shared=("weight",), kind=kind, smooth=0.04)
        for term in (joints.joints_abs, joints.joints_rel)
        for kind in Distance
    ),
    _case(
        joints.joints_2d, _projected, JOINTS | {"K": _any_valid}, "pred",
        shared=("weight", "input_px"),
    ),
    _case(joints.bone_length, _joints, JOINTS, "pred"),
    _case(joints.bone_direction, _joints, JOINTS, "pred"),
    _case(joints.joints_pa, _joints, JOINTS, "pred"),
    _case(
        mano.vertices_rel, _vertices, JOINTS | dict.fromkeys(("pred_root", "target_root"), "valid"),
        "pred", "pred_root",
    ),
    _case(mano.theta, _theta, ROW, "pred"),
    _case(mano.theta_geodesic, _theta, ROW, "pred"),
    _case(
        mano.beta,
        lambda rng: {
            "pred": rng.normal(size=(B, 2, 10)),
            "target": rng.normal(size=(B, 2, 10)),
            "valid": some(rng, B, 2),
        },
        ROW, "pred",
    ),
    _case(
        mano.beta_prior,
        lambda rng: {"pred": rng.normal(size=(B, 2, 10)), "valid": some(rng, B, 2)},
        {"pred": "valid"}, "pred",
    ),
    _case(
        mano.orthogonality,
        lambda rng: {"rot6d": rng.normal(size=(B, 2, 16, 6)), "valid": some(rng, B, 2)},
        {"rot6d": "valid"}, "rot6d",
    ),
    _case(
        mano.joint_limits, _limits, {"theta": "valid", "frames": "valid"}, "theta",
        shared=("low_rad", "high_rad"),
    ),
    *(
        _case(
            objects.object_position,
            lambda rng: {
                "pred_t": _points(rng, B, 3),
                "target_t": _points(rng, B, 3),
                "valid": some(rng, B, 3),
            },
            {"pred_t": "valid", "target_t": "valid"}, "pred_t", kind=kind, smooth=0.04,
        )
        for kind in Distance
    ),
    _case(
        objects.object_rotation, _symmetric,
        {"pred_R": "valid", "target_R": "valid", "symmetries": "symmetry_valid"}, "pred_R",
    ),
    _case(
        objects.unit_quaternion,
        lambda rng: {"quat": rng.normal(size=(B, 3, 4)), "valid": some(rng, B, 3)},
        {"quat": "valid"}, "quat",
    ),
    _case(
        objects.object_class,
        lambda rng: {
            "logits": rng.normal(0, 3, (B, 3, 7)),
            "target": rng.integers(0, 7, (B, 3)),
            "valid": some(rng, B, 3),
        },
        {"logits": "valid", "target": "valid"}, "logits",
    ),
    _case(objects.add, _model, _MODEL, "pred_R", "pred_t"),
    _case(objects.add_s, _model, _MODEL, "pred_R", "pred_t"),
    *(
        _case(
            contact.contact_focal,
            lambda rng, hard=hard: {  # type: ignore[misc]
                "logits": rng.normal(0, 4, (B, 2, 778)),
                "target": np.round(rng.random((B, 2, 778))) if hard else rng.random((B, 2, 778)),
                "valid": some(rng, B, 2),
            },
            {"logits": "valid", "target": "valid"}, "logits", alpha=alpha,
        )
        for hard, alpha in ((True, 0.25), (False, 0.4))
    ),
    _case(
        contact.contact_distance,
        lambda rng: {
            "pred_m": rng.random((B, 2, 50)) * 0.1,
            "target_m": rng.random((B, 2, 50)) * 0.1,
            "valid": some(rng, B, 2),
        },
        {"pred_m": "valid", "target_m": "valid"}, "pred_m",
    ),
    _case(
        contact.contact_points,
        lambda rng: {
            "pred": _points(rng, B, 9),
            "target": _points(rng, B, 12),
            "valid": some(rng, B, 12),
        },
        {"pred": _any_valid, "target": "valid"}, "pred",
    ),
    _case(
        physics.sdf_penetration, lambda rng: _grid(rng, "valid"), {"points": "valid"}, "points",
        shared=("grids", "boxes"),
    ),
    _case(
        physics.sdf_attraction, lambda rng: _grid(rng, "touches"), {"points": "touches"}, "points",
        shared=("grids", "boxes"),
    ),
    _case(
        physics.grasp_stability, _grasp,
        dict.fromkeys(("forces", "anchors", "gap_m", "centre", "weight", "size_m"), "valid"),
        "forces", "anchors",
    ),
    _case(motion.velocity, _window, JOINTS, "pred"),
    _case(motion.acceleration, _window, JOINTS, "pred"),
    _case(
        motion.camera_translation,
        lambda rng: {
            "pred": rng.normal(size=(B, 6, 3)),
            "target": rng.normal(size=(B, 6, 3)),
            "valid": some(rng, B, 6),
        },
        ROW, "pred",
    ),
    _case(
        motion.camera_rotation,
        lambda rng: {
            "pred": rotations(rng, B, 6),
            "target": rotations(rng, B, 6),
            "valid": some(rng, B, 6),
        },
        ROW, "pred",
    ),
    _case(
        motion.camera_trajectory,
        lambda rng: {"pred_T": _poses(rng), "target_T": _poses(rng), "valid": some(rng, B, 6)},
        {"pred_T": "valid", "target_T": "valid"}, "pred_T",
    ),
    _case(
        motion.world_consistency,
        lambda rng: {
            "pred": _points(rng, B, 6, 2, 5),
            "pred_T": _poses(rng),
            "target_world": rng.normal(size=(B, 6, 2, 5, 3)),
            "valid": some(rng, B, 6, 2, 5),
        },
        {
            "pred": "valid",
            "pred_T": lambda a: np.asarray(a["valid"].any((2, 3))),
            "target_world": "valid",
        },
        "pred", "pred_T",
    ),
    _case(
        motion.infill,
        lambda rng: {
            "pred": rng.normal(size=(B, 6, 2, 109)),
            "target": rng.normal(size=(B, 6, 2, 109)),
            "valid": some(rng, B, 6, 2),
        },
        ROW, "pred",
    ),
    _case(
        regularizers.batch_variance,
        lambda rng: {"features": rng.normal(0, 0.7, (B, 9)), "valid": some(rng, B)},
        {"features": "valid"}, "features",
    ),
    _case(regularizers.attention_kl, _attention, {"attention": "valid"}, "attention"),
)  # fmt: skip
