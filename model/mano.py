"""The MANO layer and the joint regressors.

Shape legend: b = batch, s = sides (slot 0 right, slot 1 left), j = 16 MANO joints. Metres and
radians; ``joint0 = J0(beta) + transl``.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from model.geometry.rotation import matmul_small
from model.hand import (
    NUM_JOINTS,
    NUM_VERTICES,
    STANDARD_FROM_INTERHAND,
    STANDARD_FROM_MANO21,
    TIP_VERTICES,
    JointSet,
)
from model.mano_files import ManoArrays, ManoModels


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
