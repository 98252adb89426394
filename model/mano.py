"""MANO: finding and loading the user's files, the layer, joint regressors, a numpy twin.

MANO is licensed and never shipped. ``find_mano`` looks for a folder with ``MANO_RIGHT.npz`` and
``MANO_LEFT.npz``, and optionally InterHand2.6M's joint regressor. The left model is always used
with its shape basis fixed (smplx issue 48).

Shape legend: b = batch, n = rows, s = sides (slot 0 right, slot 1 left), j = 16 MANO joints.
Metres and radians; ``joint0 = J0(beta) + transl``.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from model.geometry.rotation import matmul_small
from model.hand import (
    MANO_PARENTS,
    NUM_JOINTS,
    NUM_MANO_JOINTS,
    NUM_VERTICES,
    STANDARD_FROM_INTERHAND,
    STANDARD_FROM_MANO21,
    TIP_VERTICES,
    JointSet,
)

MANO_ENV: Final = "HANDLOOM_MANO"
MANO_FILES: Final = ("MANO_RIGHT.npz", "MANO_LEFT.npz")
INTERHAND_REGRESSOR_FILE: Final = "J_regressor_mano_ih26m.npy"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ManoArrays:
    """The model of one side, as in its file; the left one with its shape basis fixed."""

    v_template: Float64[np.ndarray, "778 3"]
    shapedirs: Float64[np.ndarray, "778 3 10"]
    posedirs: Float64[np.ndarray, "778 3 135"]
    J_regressor: Float64[np.ndarray, "16 778"]
    weights: Float64[np.ndarray, "778 16"]
    hands_mean: Float64[np.ndarray, " 45"]
    hands_components: Float64[np.ndarray, "45 45"]
    f: Int64[np.ndarray, "1538 3"]
    kintree_table: Int64[np.ndarray, "2 16"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ManoModels:
    """Both sides and what belongs to them."""

    right: ManoArrays
    left: ManoArrays
    left_was_unfixed: bool
    """The left file had the shape basis of smplx issue 48 and was fixed on loading."""
    interhand_regressor: Float[np.ndarray, "21 778"] | None
    """InterHand2.6M's regressor in its own joint order; None where the file is absent."""
    sha256: str
    """Hash over the arrays of both sides, after the fix."""


def find_mano(path: str | None) -> Path | None:
    """Return the MANO folder: ``path``, else ``HANDLOOM_MANO``, else None.

    Raises:
        FileNotFoundError: If a folder is named but lacks one of the two files.
    """
    named = path or os.environ.get(MANO_ENV)
    if not named:
        return None
    folder = Path(named).expanduser()
    missing = [name for name in MANO_FILES if not (folder / name).is_file()]
    if missing:
        source = "mano" if path else MANO_ENV
        raise FileNotFoundError(
            f"{source}={str(folder)!r} lacks {' and '.join(missing)}; "
            "convert the licensed download with: python -m preprocess import-mano"
        )
    return folder


def load_mano(folder: Path) -> ManoModels:
    """Read both sides, fix the left shape basis if needed, hash the arrays.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file lacks an array, or one has another shape or joint tree.

    Source:
        https://github.com/vchoutas/smplx/issues/48: the x axis of the left shape basis was
        published with the sign of the right one.
    """
    right, left = (_load_arrays(folder / name) for name in MANO_FILES)
    was_unfixed = bool(np.abs(left.shapedirs[:, 0] - right.shapedirs[:, 0]).sum() < 1)
    if was_unfixed:
        left.shapedirs[:, 0] *= -1

    regressor = None
    regressor_path = folder / INTERHAND_REGRESSOR_FILE
    if regressor_path.is_file():
        regressor = np.load(regressor_path, allow_pickle=False).astype(np.float32)
        if regressor.shape != (NUM_JOINTS, NUM_VERTICES):
            raise ValueError(
                f"{regressor_path}: expected shape {(NUM_JOINTS, NUM_VERTICES)}, "
                f"got {regressor.shape}"
            )
    digest = hashlib.sha256()
    for arrays in (right, left):
        for field in fields(arrays):
            digest.update(field.name.encode())
            digest.update(getattr(arrays, field.name).tobytes())
    return ManoModels(
        right=right,
        left=left,
        left_was_unfixed=was_unfixed,
        interhand_regressor=regressor,
        sha256=digest.hexdigest(),
    )


_SHAPES: Final = {
    "v_template": (778, 3),
    "shapedirs": (778, 3, 10),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "hands_mean": (45,),
    "hands_components": (45, 45),
    "f": (1538, 3),
    "kintree_table": (2, 16),
}


def _load_arrays(path: Path) -> ManoArrays:
    """Read one npz; all its problems in one error."""
    arrays: dict[str, np.ndarray] = {}
    problems = []
    with np.load(path, allow_pickle=False) as file:
        for name, shape in _SHAPES.items():
            if name not in file:
                problems.append(f"no {name}")
                continue
            dtype = np.int64 if name in ("f", "kintree_table") else np.float64
            arrays[name] = file[name].astype(dtype)
            if arrays[name].shape != shape:
                problems.append(f"{name} has shape {arrays[name].shape}, expected {shape}")
    if not problems and tuple(arrays["kintree_table"][0, 1:]) != MANO_PARENTS[1:]:
        problems.append("kintree_table is not MANO's joint tree")
    if problems:
        raise ValueError(f"{path} is no MANO model: {'; '.join(problems)}")
    return ManoArrays(**arrays)


class ManoLayer(nn.Module):
    """Rotation matrices and shape to vertices, for batches of mixed sides.

    ``smplx.MANOLayer`` reads the arrays and is what the tests compare with. The skinning is
    written out here, because smplx indexes lists with device tensors: about 16 waits for the
    device per call, which neither a CUDA graph nor ``torch.compile(fullgraph=True)`` accepts.

    The buffers are not in the state dict: a checkpoint holds no licensed arrays. Autocast is off
    inside, results have the dtype of the buffers.
    """

    v_template: Tensor
    basis: Tensor
    joints_rest: Tensor
    joints_basis: Tensor
    weights: Tensor

    def __init__(
        self,
        models: ManoModels,
        *,
        right_only: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Build from loaded arrays; ``right_only`` halves the work of right-hand batches."""
        super().__init__()
        layers = [_smplx_layer(models.right, is_right=True)]
        if not right_only:
            layers.append(_smplx_layer(models.left, is_right=False))

        def stack(read: Callable[[Any], Tensor]) -> Tensor:
            return torch.stack([read(layer).double() for layer in layers])

        v_template = stack(lambda layer: layer.v_template)
        shapedirs = stack(lambda layer: layer.shapedirs)
        posedirs = stack(lambda layer: layer.posedirs)
        J_regressor = stack(lambda layer: layer.J_regressor)
        buffers = {
            "v_template": v_template,
            # [s, 10 + 135, 778 * 3]
            "basis": torch.cat((shapedirs.permute(0, 3, 1, 2).flatten(2), posedirs), 1),
            # Rest joints are linear in beta, so the vertices are not needed for them.
            "joints_rest": J_regressor @ v_template,
            "joints_basis": torch.einsum("sjv,svck->skjc", J_regressor, shapedirs),
            "weights": stack(lambda layer: layer.lbs_weights),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(dtype), persistent=False)

    def forward(
        self,
        theta_rotmat: Float[Tensor, "b 16 3 3"],
        beta: Float[Tensor, "b 10"],
        transl: Float[Tensor, "b 3"] | None,
        is_right: Bool[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b 778 3"], Float[Tensor, "b 16 3"]]:
        """Return vertices and the 16 joints of the skeleton, MANO order.

        Args:
            theta_rotmat: Absolute joint rotations (mean added), root first.
            beta: Shape, for the fixed left model.
            transl: Translation, metres; None means zero.
            is_right: Side of each row; ignored when built with ``right_only``.
        """
        with torch.autocast(theta_rotmat.device.type, enabled=False):
            theta = theta_rotmat.to(self.weights.dtype)
            beta = beta.to(self.weights.dtype)
            vertices, joints = self._decode(theta, beta, is_right)
            if transl is not None:
                shift = transl.to(self.weights.dtype)[:, None]
                vertices, joints = vertices + shift, joints + shift
            return vertices, joints

    def root_rest(
        self, beta: Float[Tensor, "b 10"], is_right: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b 3"]:
        """Return ``J0(beta)``, the wrist of the rest pose, about which the root turns; metres."""
        with torch.autocast(beta.device.type, enabled=False):
            return self._rest_joints(beta.to(self.weights.dtype), is_right)[:, 0]

    def _rest_joints(self, beta: Tensor, is_right: Tensor) -> Tensor:
        offsets = (beta[:, :, None, None] * self.joints_basis[:, None]).sum(2)
        return _of_side(self.joints_rest[:, None] + offsets, is_right)  # [b, 16, 3]

    def _decode(self, theta: Tensor, beta: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor]:
        num = theta.shape[0]
        rest = self._rest_joints(beta, is_right)
        feature = theta[:, 1:] - torch.eye(3, dtype=theta.dtype, device=theta.device)
        coefficients = torch.cat((beta, feature.flatten(1)), 1)  # [b, 145]
        offsets = (coefficients @ self.basis).reshape(-1, num, NUM_VERTICES, 3)
        v_posed = _of_side(self.v_template[:, None] + offsets, is_right)

        # The five fingers are chains of three joints, 1-3, 4-6, ...: three steps place them all.
        turns = theta[:, 1:].reshape(num, 5, 3, 3, 3)
        rests = rest[:, 1:].reshape(num, 5, 3, 3)
        turn, place, parent = theta[:, :1], rest[:, :1], rest[:, :1]
        global_turns, places = [], []
        for level in range(3):
            bone = rests[:, :, level] - parent
            place = place + (turn * bone[:, :, None, :]).sum(-1)
            turn = matmul_small(turn, turns[:, :, level])
            parent = rests[:, :, level]
            global_turns.append(turn)
            places.append(place)
        R = torch.cat((theta[:, :1], torch.stack(global_turns, 2).flatten(1, 2)), 1)
        joints = torch.cat((rest[:, :1], torch.stack(places, 2).flatten(1, 2)), 1)

        shift = joints - (R * rest[:, :, None, :]).sum(-1)
        rigid = torch.cat((R.flatten(2), shift), -1)  # [b, 16, 9 + 3]
        blended = _of_side(torch.einsum("svj,bjx->sbvx", self.weights, rigid), is_right)
        turned = blended[..., :9].reshape(num, NUM_VERTICES, 3, 3)
        return (turned * v_posed[:, :, None, :]).sum(-1) + blended[..., 9:], joints


def _of_side(value: Tensor, is_right: Tensor) -> Tensor:
    """Pick ``[b, ...]`` from ``[s, b, ...]``."""
    if value.shape[0] == 1:
        return value[0]
    return torch.where(is_right.reshape(-1, *[1] * (value.dim() - 2)), value[0], value[1])


def _smplx_layer(arrays: ManoArrays, *, is_right: bool) -> Any:
    """Build ``smplx.MANOLayer`` from arrays, without a file."""
    from smplx import MANOLayer
    from smplx.utils import Struct

    class TenBetas(MANOLayer):  # type: ignore[misc]  # smplx ships no types
        """smplx expects 300 shape coefficients and prints a warning about MANO's 10."""

        SHAPE_SPACE_DIM = 10

    struct = Struct(**{field.name: getattr(arrays, field.name) for field in fields(arrays)})
    return TenBetas(model_path="", data_struct=struct, is_rhand=is_right)


def joint_regressors(models: ManoModels) -> Float[Tensor, "sets 21 778"]:
    """Return one regressor per ``JointSet``: posed vertices to the 21 standard joints.

    Rows come from the right model; a mirrored mesh has the same vertex numbers. InterHand2.6M's
    rows are NaN where its file is absent.
    """
    sets = np.full((len(JointSet), NUM_JOINTS, NUM_VERTICES), np.nan, np.float32)
    for joint_set in (JointSet.smplx, JointSet.freihand):
        tips = np.eye(NUM_VERTICES)[list(TIP_VERTICES[joint_set.name].right)]
        rows = np.concatenate((models.right.J_regressor, tips))
        sets[joint_set] = rows[list(STANDARD_FROM_MANO21)]
    if models.interhand_regressor is not None:
        sets[JointSet.interhand26m] = models.interhand_regressor[list(STANDARD_FROM_INTERHAND)]
    return torch.from_numpy(sets)


def regress_joints(
    vertices: Float[Tensor, "*b 778 3"],
    regressors: Float[Tensor, "sets 21 778"],
    joint_set: Integer[Tensor, "*b"],
) -> Float[Tensor, "*b 21 3"]:
    """Return the 21 joints, standard order, of each mesh in its joint set; unit of the vertices."""
    with torch.autocast(vertices.device.type, enabled=False):
        rows = regressors[joint_set].to(vertices.dtype)
        # About the mesh's centre: TF32 would round a hand at 1 m by half a millimetre.
        centre = vertices.mean(-2, keepdim=True)
        return rows @ (vertices - centre) + rows.sum(-1, keepdim=True) * centre


def mano_forward(
    arrays: ManoArrays,
    theta: Float64[np.ndarray, "n 48"],
    beta: Float64[np.ndarray, "n 10"],
    transl: Float64[np.ndarray, "n 3"],
) -> tuple[Float64[np.ndarray, "n 778 3"], Float64[np.ndarray, "n 16 3"]]:
    """Return vertices and the 16 joints in numpy float64; for offline use.

    Takes about 150 KB per row while it works.

    Args:
        arrays: Model of the side of all rows.
        theta: Absolute axis-angle (mean added), root first.
        beta: Shape.
        transl: Translation, metres.

    Source:
        Romero et al. 2017, Embodied Hands, section 3; Loper et al. 2015, SMPL, equations 2-10.
    """
    num = len(theta)
    R = Rotation.from_rotvec(theta.reshape(-1, 3)).as_matrix().reshape(num, NUM_MANO_JOINTS, 3, 3)
    shaped = arrays.v_template + (beta @ arrays.shapedirs.reshape(-1, 10).T).reshape(num, -1, 3)
    rest = arrays.J_regressor @ shaped
    feature = (R[:, 1:] - np.eye(3)).reshape(num, -1)
    posed = shaped + (feature @ arrays.posedirs.reshape(-1, 135).T).reshape(num, -1, 3)

    turn = R.copy()
    joints = rest.copy()
    for j, parent in enumerate(MANO_PARENTS[1:], start=1):
        turn[:, j] = turn[:, parent] @ R[:, j]
        bone = rest[:, j] - rest[:, parent]
        joints[:, j] = joints[:, parent] + np.einsum("nik,nk->ni", turn[:, parent], bone)
    shift = joints - np.einsum("njik,njk->nji", turn, rest)
    blended = (arrays.weights @ turn.reshape(num, -1, 9)).reshape(num, -1, 3, 3)
    vertices = np.einsum("nvik,nvk->nvi", blended, posed) + arrays.weights @ shift
    return vertices + transl[:, None], joints + transl[:, None]
