"""HO-3D's scores of one test set, by loops; metres in, centimetres out.

Joints are in MANO's order: the 16 of the skeleton, then the tips from thumb to little finger.
"""

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
    """Return the official scores: means in cm, areas and F-scores in [0, 1].

    Joints [21, 3] and vertices [n, 3] for each sample, metres. Meshes of another size are
    treated as in FreiHAND. ``strict``: proper rotations, and a sample whose guessed joints 0 and 4
    coincide is left out of the scale-translation numbers (NaN if none is left).
    """
    limits = np.linspace(0, 0.05, 100)
    align = procrustes.align_proper if strict else procrustes.align_w_scale
    same = len(vertices[0]) == len(truth_vertices[0])
    xyz, xyz_al, xyz_st, mesh, mesh_al = [], [], [], [], []
    f5, f15, f5_al, f15_al = [], [], [], []
    for i in range(len(joints)):
        truth, guess = truth_joints[i], joints[i]
        xyz.append(points.distances(guess, truth))
        xyz_al.append(points.distances(align(truth, guess), truth))
        st = points.distances(procrustes.scale_translation(truth, guess), truth)
        if strict and bool((guess[0] == guess[4]).all()):
            st = np.full(len(st), np.nan)
        xyz_st.append(st)
        if same:
            moved = align(truth_vertices[i], vertices[i])
            mesh.append(points.distances(vertices[i], truth_vertices[i]))
            mesh_al.append(points.distances(moved, truth_vertices[i]))
        else:
            moved = procrustes.align_by_joints(vertices[i], guess, truth, strict=strict)
        f5.append(points.f_score(truth_vertices[i], vertices[i], 0.005))
        f15.append(points.f_score(truth_vertices[i], vertices[i], 0.015))
        f5_al.append(points.f_score(truth_vertices[i], moved, 0.005))
        f15_al.append(points.f_score(truth_vertices[i], moved, 0.015))
    scores = {}
    for name, errors in (
        ("xyz", xyz),
        ("xyz_procrustes_al", xyz_al),
        ("xyz_scale_trans_al", xyz_st),
        ("mesh", mesh),
        ("mesh_al", mesh_al),
    ):
        mean, auc = points.mean_and_auc(errors, limits) if errors else (-1.0, -1.0)
        scores[f"{name}_mean3d"] = mean * 100
        scores[f"{name}_auc3d"] = auc
    scores["f_score_5"], scores["f_al_score_5"] = points.average(f5), points.average(f5_al)
    scores["f_score_15"], scores["f_al_score_15"] = points.average(f15), points.average(f15_al)
    return scores
