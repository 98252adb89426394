import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tests.reference import freihand as reference
from tests.reference import points, procrustes
from tests.train.evaluate.metrics.scenes import MIRRORED, NUM_HANDS, Scene, stream, to_tensors
from train.evaluate.metrics import freihand
from train.evaluate.metrics.freihand import FreihandAccumulator, FreihandScores, official


def _scores(scene: Scene, *, strict: bool = False) -> FreihandScores:
    accumulator = FreihandAccumulator(strict=strict)
    stream(accumulator.update, *scene.tensors())
    return accumulator.summary()


@pytest.mark.parametrize("strict", [False, True], ids=["official", "strict"])
@pytest.mark.parametrize("num_vertices", [778, 195])
def test_scores_match_the_loops(num_vertices: int, strict: bool) -> None:  # noqa: FBT001
    scene = Scene(num_vertices)
    actual = official(_scores(scene, strict=strict))
    expected = reference.score(*scene.arrays(), strict=strict)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert list(actual) == [
        *("xyz_mean3d", "xyz_auc3d", "xyz_al_mean3d", "xyz_al_auc3d"),
        *("mesh_mean3d", "mesh_auc3d", "mesh_al_mean3d", "mesh_al_auc3d"),
        *("f_score_5", "f_al_score_5", "f_score_15", "f_al_score_15"),
    ]
    assert actual["f_score_5"] > 0.1


def test_another_vertex_count_has_no_vertex_errors() -> None:
    scores = _scores(Scene(195))
    names = ("mpvpe_mm", "auc_v", "pa_mpvpe_mm", "pa_auc_v", "proper_pa_mpvpe_mm")
    assert [getattr(scores, name) for name in names] == [None] * 5
    assert scores.num_reflected_meshes == scores.num_reflected >= 1
    named = official(scores)
    assert (named["mesh_mean3d"], named["mesh_al_mean3d"]) == (-100, -100)
    assert (named["mesh_auc3d"], named["mesh_al_auc3d"]) == (-1, -1)
    assert scores.pa_f15 != pytest.approx(_scores(Scene(195), strict=True).pa_f15, abs=0.01)


def test_reflected_hands_are_counted_and_have_a_proper_number() -> None:
    scene = Scene()
    scores = _scores(scene)
    joints = zip(scene.joints, scene.pred_joints, strict=True)
    meshes = zip(scene.vertices, scene.pred_vertices, strict=True)
    assert scores.num_reflected == sum(procrustes.is_reflected(*pair) for pair in joints)
    assert scores.num_reflected_meshes == sum(procrustes.is_reflected(*pair) for pair in meshes)
    assert scores.num_reflected >= 1
    strict = _scores(scene, strict=True)
    assert strict.pa_mpjpe_mm == strict.proper_pa_mpjpe_mm == scores.proper_pa_mpjpe_mm
    assert strict.pa_mpvpe_mm == strict.proper_pa_mpvpe_mm == scores.proper_pa_mpvpe_mm
    assert (strict.num_reflected, strict.mpjpe_mm) == (scores.num_reflected, scores.mpjpe_mm)
    assert scores.proper_pa_mpjpe_mm > scores.pa_mpjpe_mm + 1


def test_only_a_reflection_makes_the_numbers_differ() -> None:
    scene = Scene()
    scene.pred_joints[MIRRORED] = scene.joints[MIRRORED] + 0.01
    scene.pred_vertices[MIRRORED] = scene.vertices[MIRRORED] + 0.01
    scores, strict = _scores(scene), _scores(scene, strict=True)
    assert scores.num_reflected == scores.num_reflected_meshes == 0
    for name, value in asdict(scores).items():
        assert value == pytest.approx(getattr(strict, name), rel=1e-6), name  # the 1e-8


def test_streaming_equals_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    once = FreihandAccumulator()
    once.update(*scene.tensors())
    assert asdict(_scores(scene)) == pytest.approx(asdict(once.summary()), rel=1e-13)
    monkeypatch.setattr(freihand, "CHUNK", 4)
    chunked = FreihandAccumulator()
    chunked.update(*scene.tensors())
    assert asdict(chunked.summary()) == pytest.approx(asdict(once.summary()), rel=1e-13)


def test_errors_on_a_threshold_count_as_hits() -> None:
    """Every joint and vertex at once 50 mm, then one float more; 0 to 50 mm in 99 steps."""
    joints, mesh = torch.zeros(2, 21, 3).double(), torch.zeros(2, 778, 3).double()
    pred_joints, pred_mesh = joints.clone(), mesh.clone()
    pred_joints[0, :, 2] = pred_mesh[0, :, 1] = 0.05
    pred_joints[1, :, 2] = pred_mesh[1, :, 1] = float(np.nextafter(0.05, 1))
    accumulator = FreihandAccumulator()
    accumulator.update(pred_joints, joints, pred_mesh, mesh)
    scores = accumulator.summary()
    assert scores.auc_j == pytest.approx(0.5 * 0.5 / 99, abs=1e-15)  # half of the samples
    assert scores.auc_v == pytest.approx(0.5 * 0.5 / 99, abs=1e-15)
    assert scores.mpjpe_mm == pytest.approx(50)
    limits = np.linspace(0, 0.05, 100)
    rng = np.random.default_rng(3)
    errors = limits[rng.integers(0, 100, (NUM_HANDS, 21))]
    pred = torch.zeros(NUM_HANDS, 21, 3).double()
    pred[:, :, 0] = torch.from_numpy(errors)
    zeros = torch.zeros(NUM_HANDS, 778, 3).double()
    accumulator = FreihandAccumulator()
    accumulator.update(pred, torch.zeros_like(pred), zeros, zeros)
    mean, auc = points.mean_and_auc(list(errors), limits)
    assert accumulator.summary().auc_j == pytest.approx(auc, abs=1e-15)
    assert accumulator.summary().mpjpe_mm == pytest.approx(1000 * mean, rel=1e-12)


@pytest.mark.parametrize("strict", [False, True], ids=["official", "strict"])
def test_a_zero_prediction_lands_on_the_mean(strict: bool) -> None:  # noqa: FBT001
    scene = Scene()
    joints, mesh = scene.joints, scene.vertices
    accumulator = FreihandAccumulator(strict=strict)
    zeros = to_tensors(np.zeros_like(joints), joints, np.zeros_like(mesh), mesh)
    accumulator.update(*zeros)
    scores = accumulator.summary()
    assert scores.f5 == scores.f15 == scores.auc_j == 0
    assert scores.num_reflected == scores.num_reflected_meshes == 0
    for points_, error in ((joints, scores.pa_mpjpe_mm), (mesh, scores.pa_mpvpe_mm)):
        to_mean = points_ - points_.mean(1, keepdims=True)
        assert error == pytest.approx(1000 * np.sqrt((to_mean**2).sum(-1)).mean(), rel=1e-9)


def test_float32_is_scored_in_float64() -> None:
    tensors = [x.float() for x in Scene().tensors()]
    accumulator, expected = FreihandAccumulator(), FreihandAccumulator()
    accumulator.update(*tensors)
    expected.update(*(x.double() for x in tensors))
    assert accumulator.summary() == expected.summary()


@pytest.mark.parametrize("field", range(4), ids=["joints", "target", "vertices", "target_vertices"])
def test_values_that_are_not_finite_are_an_error(field: int) -> None:
    tensors = Scene().tensors()
    tensors[field][3, 5, 1] = math.nan
    name = ("joints", "target", "vertices", "target_vertices")[field]
    with pytest.raises(
        ValueError, match=rf"^{name}: 1 of 6 scored hands are not finite .first: \d+.$"
    ):
        FreihandAccumulator().update(*tensors)


def test_wrong_shapes_are_an_error() -> None:
    joints, target, mesh, target_mesh = Scene().tensors()
    accumulator = FreihandAccumulator()
    with pytest.raises(ValueError, match=r"^joints must have shape \(6, 21, 3\), got \(6, 16, 3\)"):
        accumulator.update(joints[:, :16], target, mesh, target_mesh)
    with pytest.raises(ValueError, match=r"^target must have shape \(6, 21, 3\), got \(1, 21, 3\)"):
        accumulator.update(joints, target[:1], mesh, target_mesh)
    with pytest.raises(ValueError, match=r"^vertices must have shape \(6, 778, 3\), got \(5, 778"):
        accumulator.update(joints, target, mesh[:5], target_mesh)
    with pytest.raises(ValueError, match=r"^target_vertices must have shape \(6, 778, 3\), got"):
        accumulator.update(joints, target, mesh, target_mesh[:, :195])


def test_the_vertex_count_must_stay() -> None:
    joints, target, mesh, target_mesh = Scene().tensors()
    accumulator = FreihandAccumulator()
    accumulator.update(joints, target, mesh[:, :195], target_mesh)
    with pytest.raises(ValueError, match="same number of vertices, got 778 after 195"):
        accumulator.update(joints, target, mesh, target_mesh)


def test_nothing_to_score_is_an_error() -> None:
    accumulator = FreihandAccumulator()
    with pytest.raises(ValueError, match="no sample was scored: update was given none"):
        accumulator.summary()
    accumulator.update(*(x[:0] for x in Scene().tensors()))
    with pytest.raises(ValueError, match="no sample was scored: update was given none"):
        accumulator.summary()
