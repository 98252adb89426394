"""Terms of object, hands and motion against loops over images, points and frames."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.prediction import HandPrediction, ObjectPrediction, Prediction, hands_of
from pipeline.batch import Batch, blank_batch
from pipeline.labels.objects import ObjectModels
from tests.reference import losses as loops
from tests.reference import losses_scene
from train.losses.config import Distance, LossConfig
from train.losses.inputs import MOTION_TERMS, OBJECT_TERMS
from train.losses.plan import plan_losses
from train.losses.scene import NUM_POINTS
from train.losses.total import LossTerms, total_loss

CPU, F64 = torch.device("cpu"), torch.float64
B, T = 6, 3
"""Images; two windows of three frames."""
K = torch.tensor([[300.0, 2.0, 64.0], [0.0, 310.0, 60.0], [0.0, 0.0, 1.0]], dtype=F64)
NO_SHAPE, NO_OBJECT, RIGID = 0, 1, 4
"""Images whose object has no shape in the store, that have none, and whose object has no angle."""
OFF = dict.fromkeys(("joints_abs", "joints_rel", "joints_2d", "theta", "beta", "vertices"), 0.0)


@pytest.fixture
def objects() -> ObjectModels:
    rng = np.random.default_rng(1)
    points = torch.from_numpy(rng.normal(0, 0.05, (3, 300, 3)))
    points[2] = torch.nan
    return ObjectModels(
        names=("a", "b", "c"), points=points, moving=torch.from_numpy(rng.random((3, 300)) < 0.4)
    )


def turns(num: int, seed: int) -> Tensor:
    return torch.from_numpy(Rotation.random(num, random_state=seed).as_matrix())


def batch() -> Batch:
    rng = np.random.default_rng(2)
    blank = blank_batch(torch.zeros(B, 3, 128, 128), num_hands=2)
    has_object = torch.arange(B) != NO_OBJECT
    pose = torch.cat((turns(B, 3), torch.from_numpy(rng.normal(0, 0.1, (B, 3, 1)))), -1)
    pose[:, 2, 3] += 0.7
    pose[NO_OBJECT] = torch.nan
    arti = torch.from_numpy(rng.uniform(0, 2, B))
    arti[[NO_OBJECT, RIGID]] = torch.nan
    joints = torch.from_numpy(rng.normal(0, 0.1, (B, 2, 21, 3))) + torch.tensor([0, 0, 0.7])
    valid = torch.from_numpy(rng.random((B, 2, 21)) < 0.8)
    valid[0, 1, 0] = False  # a wrist is missing
    has_joints = torch.ones(B, 2, dtype=torch.bool)
    has_joints[3, 0] = False
    joints[~(valid & has_joints[..., None])] = torch.nan
    return replace(
        blank,
        K=K.expand(B, 3, 3),
        joints_3d=joints,
        joint_valid=valid,
        has_joints=has_joints,
        object_id=torch.tensor([2, -1, 1, 0, 0, 0]),
        object_pose=pose,
        object_arti_rad=arti,
        has_object=has_object,
    )


def prediction() -> Prediction:
    rng = np.random.default_rng(7)
    t = torch.from_numpy(rng.normal(0, 0.1, (B, 3))) + torch.tensor([0, 0, 0.6])
    joints = torch.from_numpy(rng.normal(0, 0.1, (B, 2, 21, 3))) + torch.tensor([0, 0, 0.7])
    return Prediction(
        hands=HandPrediction(joints_3d=joints.requires_grad_()),
        object=ObjectPrediction(
            rotmat=turns(B, 8).requires_grad_(),
            rot6d=torch.zeros(B, 6),
            transl=t.requires_grad_(),
            arti_rad=torch.from_numpy(rng.uniform(0, 2, B)).requires_grad_(),
        ),
    )


def terms_of(
    objects: ObjectModels | None, num_frames: int = T, said: Prediction | None = None, **loss: Any
) -> tuple[Tensor, LossTerms]:
    weights = dict.fromkeys((*OBJECT_TERMS, *MOTION_TERMS), 1.0)
    plan = plan_losses(LossConfig(**{**OFF, **weights, **loss}), CPU, objects=objects)
    return total_loss(
        prediction() if said is None else said, batch(), None, plan, num_frames=num_frames
    )


def placed(points: Tensor, moving: Tensor, angle: float) -> np.ndarray:
    """Points of an object at an angle, one after another."""
    turn = Rotation.from_rotvec([0, 0, -angle])
    return np.array([turn.apply(p) if m else p for p, m in zip(points, moving, strict=True)])


def expected(objects: ObjectModels, kind: str = "l1") -> dict[str, list[float]]:
    said, true = prediction(), batch()
    hands, obj = hands_of(said), said.object
    assert obj is not None
    values: dict[str, list[float]] = {name: [] for name in (*OBJECT_TERMS, *MOTION_TERMS)}
    guesses, truths = np.full((B, 21, 3), np.nan), np.full((B, 21, 3), np.nan)
    for b in range(B):
        has_object = bool(true.has_object[b])
        R, t = true.object_pose[b, :, :3].numpy(), true.object_pose[b, :, 3].numpy()
        own_R, own_t = obj.rotmat[b].detach().numpy(), obj.transl[b].detach().numpy()
        is_turned = has_object and b != RIGID
        angle = float(true.object_arti_rad[b]) if is_turned else 0.0
        own_angle = obj.arti_rad[b].item() if is_turned else 0.0
        values["object_position"].append(loops.size(own_t - t, kind) if has_object else 0.0)
        values["object_arti"].append(abs(own_angle - angle))
        if has_object and b != NO_SHAPE:
            index = int(true.object_id[b])
            shape = objects.points[index, :NUM_POINTS], objects.moving[index, :NUM_POINTS]
            guess, truth = placed(*shape, own_angle) @ own_R.T, placed(*shape, angle) @ R.T
            values["object_points"].append(
                loops.mean_or_zero([loops.size(d, kind) for d in guess - truth])
            )
            pixels = [
                np.abs(loops.pixel(p + own_t, K.numpy()) - loops.pixel(q + t, K.numpy())).sum()
                for p, q in zip(guess, truth, strict=True)
            ]
            values["object_2d"].append(float(np.mean(pixels)) / 128)
            guesses[b], truths[b] = guess[:21] + own_t, truth[:21] + t
        else:
            values["object_points"].append(0.0)
            values["object_2d"].append(0.0)
        places = {}
        for hand, name in enumerate("rl"):
            if true.has_joints[b, hand] and true.joint_valid[b, hand, 0]:
                wrist = hands.joints_3d[b, hand, 0].detach() - true.joints_3d[b, hand, 0]
                places[name] = wrist.numpy()
        if has_object:
            places["o"] = own_t - t
        values["hand_object"].append(
            loops.mean_or_zero(
                [
                    loops.size(places[j] - places[i], kind)
                    for i, j in ("ro", "rl", "lo")
                    if i in places and j in places
                ]
            )
        )
    own = np.concatenate((hands.joints_3d.detach().numpy(), guesses[:, None]), 1)
    theirs = np.concatenate((true.joints_3d.numpy(), truths[:, None]), 1)
    known = np.isfinite(theirs[..., 0])
    windows = [x.reshape(B // T, T, *x.shape[1:]) for x in (own, theirs, known)]
    for name in MOTION_TERMS:
        per_window = getattr(losses_scene, name)(*windows)
        values[name] = np.repeat(per_window, T).tolist()
    return values


def test_terms_are_the_loops(objects: ObjectModels) -> None:
    total, terms = terms_of(objects)
    wanted = expected(objects)
    assert terms.names == (*OBJECT_TERMS, *MOTION_TERMS)
    for name, found in zip(terms.names, terms.values, strict=True):
        assert found.tolist() == pytest.approx(wanted[name], abs=1e-12), name
        assert found.max() > 1e-3
    means = [np.mean(wanted[name]) for name in terms.names]
    assert total.item() == pytest.approx(np.sum(means), rel=1e-7)


def test_distances_in_3d_are_measured_as_chosen(objects: ObjectModels) -> None:
    _, terms = terms_of(objects, distance=Distance.l2)
    wanted = expected(objects, "l2")
    for name in ("object_position", "object_points", "hand_object"):
        found = terms.values[terms.names.index(name)]
        assert found.tolist() == pytest.approx(wanted[name], abs=1e-12), name


def test_the_images_that_a_term_saw_are_told(objects: ObjectModels) -> None:
    _, terms = terms_of(objects)
    seen = dict(zip(terms.names, terms.seen.tolist(), strict=True))
    assert [b for b in range(B) if not seen["object_position"][b]] == [NO_OBJECT]
    assert [b for b in range(B) if not seen["object_points"][b]] == [NO_SHAPE, NO_OBJECT]
    assert [b for b in range(B) if not seen["object_arti"][b]] == [NO_OBJECT, RIGID]
    assert [b for b in range(B) if not seen["hand_object"][b]] == [NO_OBJECT]  # nor both wrists
    assert all(seen["velocity"])


def test_a_window_without_neighbours_has_no_motion(objects: ObjectModels) -> None:
    first_and_last = torch.arange(B) % T != 1
    given = batch()
    given = replace(
        given,
        has_joints=given.has_joints & first_and_last[:, None],
        has_object=given.has_object & first_and_last,
    )
    weights = dict.fromkeys(MOTION_TERMS, 1.0)
    chosen = LossConfig(**{**OFF, **weights})  # type: ignore[arg-type]
    plan = plan_losses(chosen, CPU, objects=objects)
    _, terms = total_loss(prediction(), given, None, plan, num_frames=T)
    for name in MOTION_TERMS:
        place = terms.names.index(name)
        assert not terms.seen[place].any(), name
        assert (terms.values[place] == 0).all()


def test_gradients_are_finite_and_those_of_differences(objects: ObjectModels) -> None:
    said = prediction()
    obj = said.object
    assert obj is not None
    leaves = (hands_of(said).joints_3d, obj.rotmat, obj.transl, obj.arti_rad)
    grads = torch.autograd.grad(terms_of(objects, said=said)[0], leaves)
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)
    assert grads[3][NO_OBJECT] == grads[3][RIGID] == 0

    def total(*values: Tensor) -> Tensor:
        joints, rotmat, transl, arti = values
        moved = ObjectPrediction(rotmat=rotmat, rot6d=obj.rot6d, transl=transl, arti_rad=arti)
        hands = HandPrediction(joints_3d=joints)
        return terms_of(objects, said=Prediction(hands=hands, object=moved))[0]

    torch.autograd.gradcheck(total, leaves, eps=1e-7, atol=1e-5, fast_mode=True)


def test_single_frames_have_no_motion_and_runs_without_objects_no_object(
    objects: ObjectModels,
) -> None:
    assert terms_of(objects, num_frames=1)[1].names == OBJECT_TERMS
    assert terms_of(None)[1].names == MOTION_TERMS
    hands = Prediction(hands=prediction().hands)
    _, terms = terms_of(objects, said=hands)
    assert terms.names == MOTION_TERMS
    assert terms.values.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by Dynamo
def test_the_total_of_a_scene_is_one_graph(objects: ObjectModels) -> None:
    """As a GPU compiles it; the backend here only traces, which needs no compiler."""
    torch.compiler.reset()
    compiled = torch.compile(total_loss, fullgraph=True, dynamic=False, backend="aot_eager")
    weights = dict.fromkeys((*OBJECT_TERMS, *MOTION_TERMS), 1.0)
    chosen = LossConfig(**{**OFF, **weights})  # type: ignore[arg-type]
    plan = plan_losses(chosen, CPU, objects=objects)
    found = [
        of(prediction(), batch(), None, plan, num_frames=T)[0].item()
        for of in (total_loss, compiled)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
