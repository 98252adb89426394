"""FreiHAND's scores of one test set, by loops; metres in, centimetres out."""

from collections.abc import Sequence

import numpy as np

from tests.reference import points, procrustes


def score(
    truth_joints: Sequence[np.ndarray] | np.ndarray,
    joints: Sequence[np.ndarray] | np.ndarray,
    truth_vertices: Sequence[np.ndarray] | np.ndarray,
    vertices: Sequence[np.ndarray] | np.ndarray,
    *,
    strict: bool = False,
) -> dict[str, float]:
    """Return the lines of the official scores.txt: means in cm, areas and F-scores in [0, 1].

    Joints [21, 3] and vertices [n, 3] for each sample, metres, camera frame. The first sample
    decides if the meshes have the same vertices; where not, the mesh means are -100, the mesh
    areas -1, and the mesh is aligned by its joints. ``strict``: proper rotations everywhere, and
    a mesh of another size moved by the true similarity of its joints.
    """
    limits = np.linspace(0, 0.05, 100)
    align = procrustes.align_proper if strict else procrustes.align_w_scale
    same = len(vertices[0]) == len(truth_vertices[0])
    xyz, xyz_al, mesh, mesh_al = [], [], [], []
    f5, f15, f5_al, f15_al = [], [], [], []
    for i in range(len(joints)):
        xyz.append(points.distances(joints[i], truth_joints[i]))
        xyz_al.append(points.distances(align(truth_joints[i], joints[i]), truth_joints[i]))
        if same:
            moved = align(truth_vertices[i], vertices[i])
            mesh.append(points.distances(vertices[i], truth_vertices[i]))
            mesh_al.append(points.distances(moved, truth_vertices[i]))
        else:
            moved = procrustes.align_by_joints(
                vertices[i], joints[i], truth_joints[i], strict=strict
            )
        f5.append(points.f_score(truth_vertices[i], vertices[i], 0.005))
        f15.append(points.f_score(truth_vertices[i], vertices[i], 0.015))
        f5_al.append(points.f_score(truth_vertices[i], moved, 0.005))
        f15_al.append(points.f_score(truth_vertices[i], moved, 0.015))
    scores = {}
    for name, errors in (("xyz", xyz), ("xyz_al", xyz_al), ("mesh", mesh), ("mesh_al", mesh_al)):
        mean, auc = points.mean_and_auc(errors, limits) if errors else (-1.0, -1.0)
        scores[f"{name}_mean3d"] = mean * 100
        scores[f"{name}_auc3d"] = auc
    scores["f_score_5"], scores["f_al_score_5"] = points.average(f5), points.average(f5_al)
    scores["f_score_15"], scores["f_al_score_15"] = points.average(f15), points.average(f15_al)
    return scores
