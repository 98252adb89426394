"""The MANO layer and the joint regressors.

Shape legend: b = batch, s = sides (slot 0 right, slot 1 left), j = 16 MANO joints. Metres and
radians; ``joint0 = J0(beta) + transl``.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Integer
from torch import Tensor, nn

from model.geometry.rotation import matmul_small
from model.hand import (
    LEFT,
    NUM_HANDS,
    NUM_JOINTS,
    NUM_MANO_JOINTS,
    NUM_VERTICES,
    RIGHT,
    STANDARD_FROM_INTERHAND,
    STANDARD_FROM_MANO21,
    TIP_VERTICES,
    JointSet,
)
from model.mano.files import ManoArrays, ManoModels


class ManoLayer(nn.Module):
    """MANO layer: rotation matrices and shape to vertices, for batches of mixed sides.

    ``smplx.MANOLayer`` reads the arrays and is the reference in the tests. The skinning is
    reimplemented here, because smplx indexes lists with device tensors: about 16 synchronisations
    per call, which neither a CUDA graph nor ``torch.compile(fullgraph=True)`` accepts.

    The buffers are not in the state dict: a checkpoint contains no licensed arrays. Autocast is
    disabled inside; results have the dtype of the buffers.
    """

    template: Tensor
    """[s, 3 * 778], rest vertices; all x, then all y, then all z, for contiguous arithmetic."""
    basis: Tensor
    """[s * 145, 3 * 778], shape and pose blend shapes."""
    weights: Tensor
    """[s * 16, 778], skinning weights."""
    joints_rest: Tensor
    """[s, 16, 3]."""
    joints_basis: Tensor
    """[s, 10, 16, 3]; rest joints are linear in beta, so the vertices are not needed for them."""

    def __init__(
        self,
        models: ManoModels,
        *,
        right_only: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Build from loaded arrays; ``right_only`` is faster where all hands are right hands."""
        super().__init__()
        layers = [smplx_layer(models.right, is_right=True)]
        if not right_only:
            layers.append(smplx_layer(models.left, is_right=False))
        self.num_sides = len(layers)

        def stack(read: Callable[[Any], Tensor]) -> Tensor:
            return torch.stack([read(layer).double() for layer in layers])

        v_template = stack(lambda layer: layer.v_template)  # [s, 778, 3]
        shapedirs = stack(lambda layer: layer.shapedirs)  # [s, 778, 3, 10]
        posedirs = stack(lambda layer: layer.posedirs)  # [s, 135, 778 * 3]
        J_regressor = stack(lambda layer: layer.J_regressor)
        posedirs = posedirs.reshape(len(layers), -1, NUM_VERTICES, 3)
        basis = torch.cat((shapedirs.permute(0, 3, 2, 1), posedirs.mT), 1)  # [s, 145, 3, 778]
        buffers = {
            "template": v_template.mT.flatten(1),
            "basis": basis.flatten(2).flatten(0, 1),
            "weights": stack(lambda layer: layer.lbs_weights).mT.flatten(0, 1),
            "joints_rest": J_regressor @ v_template,
            "joints_basis": torch.einsum("sjv,svck->skjc", J_regressor, shapedirs),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(dtype).contiguous(), persistent=False)

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
        """Return ``J0(beta)``, the rest wrist: the centre of the root rotation; metres."""
        with torch.autocast(beta.device.type, enabled=False):
            return self._rest_joints(beta.to(self.weights.dtype), is_right)[:, 0]

    def _rest_joints(self, beta: Tensor, is_right: Tensor) -> Tensor:
        offsets = (beta[:, :, None, None] * self.joints_basis[:, None]).sum(2)
        return self._pick(self.joints_rest[:, None] + offsets, is_right)  # [b, 16, 3]

    def _decode(self, theta: Tensor, beta: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor]:
        num = theta.shape[0]
        rest = self._rest_joints(beta, is_right)
        feature = theta[:, 1:] - torch.eye(3, dtype=theta.dtype, device=theta.device)
        coefficients = torch.cat((beta, feature.flatten(1)), 1)  # [b, 145]
        template = self._pick(self.template[:, None], is_right)
        v_posed = template + self._in_columns_of_side(coefficients, is_right) @ self.basis
        x, y, z = v_posed.view(num, 3, 1, NUM_VERTICES).unbind(1)  # [b, 1, 778] each

        # The five fingers are chains of three joints, 1-3, 4-6, ...: three steps pose them all.
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
        rigid = torch.cat((R, shift[..., None]), -1).permute(0, 3, 2, 1)  # [b, 4, 3, 16]
        # One product per column: the gradient of slices of one product would be copied together.
        columns = self._in_columns_of_side(rigid, is_right).unbind(1)
        a, b, c, t = ((column.flatten(0, 1) @ self.weights).view(num, 3, -1) for column in columns)
        return (a * x + b * y + c * z + t).mT.contiguous(), joints

    def _pick(self, value: Tensor, is_right: Tensor) -> Tensor:
        """Return ``[b, ...]`` of each row's side from ``[s, b or 1, ...]``."""
        if self.num_sides == 1:
            return value[0]
        return torch.where(is_right.reshape(-1, *[1] * (value.dim() - 2)), value[0], value[1])

    def _in_columns_of_side(self, value: Tensor, is_right: Tensor) -> Tensor:
        """Return ``[b, ..., s * k]`` from ``[b, ..., k]``: right's columns, left's, zero elsewhere.

        The product with the stacked rows of both sides then needs no second result to select from.
        """
        if self.num_sides == 1:
            return value
        is_right = is_right.reshape(-1, *[1] * (value.dim() - 1))
        return torch.cat((value.where(is_right, 0.0), value.where(~is_right, 0.0)), -1)


def smplx_layer(arrays: ManoArrays, *, is_right: bool) -> Any:
    """Return ``smplx.MANOLayer`` built from arrays, without a file."""
    from smplx import MANOLayer
    from smplx.utils import Struct

    class TenBetas(MANOLayer):  # type: ignore[misc]  # smplx ships no types
        """smplx expects 300 shape coefficients and prints a warning about MANO's 10."""

        SHAPE_SPACE_DIM = 10

    struct = Struct(**{field.name: getattr(arrays, field.name) for field in fields(arrays)})
    return TenBetas(model_path="", data_struct=struct, is_rhand=is_right)


class JointRegressors(nn.Module):
    """Joint regressors of all joint conventions and both sides; used by ``regress_joints``.

    Equivalent to a matrix ``[sets, 2 sides, 21, 16 + 778]`` on skeleton and vertices. Most of its
    rows select one point, and the others repeat between conventions. Stored are the distinct points
    and an index: forward and backward of 512 hands take 16 ms on one core instead of 41 ms with
    that matrix gathered per sample, and selected points are exact.

    The buffers are not in the state dict.
    """

    tips: Tensor
    """[t], vertices that are a fingertip in some convention."""
    rows: Tensor
    """[r, 778], regressors on the posed mesh."""
    point: Tensor
    """[sets, 2, 21], index into 16 skeleton joints, fingertips, regressor rows; -1: file is absent.

    Sides are slots: 0 right, 1 left.
    """

    def __init__(
        self,
        *,
        tips: Int64[Tensor, " t"],
        rows: Float32[Tensor, "r 778"],
        point: Int64[Tensor, "sets 2 21"],
    ) -> None:
        """Register the tensors as buffers, so that they follow the model to its device."""
        super().__init__()
        for name, value in (("tips", tips), ("rows", rows), ("point", point)):
            self.register_buffer(name, value, persistent=False)


def joint_regressors(models: ManoModels) -> JointRegressors:
    """Return the regressors of every ``JointSet``; InterHand2.6M's are absent without its file."""
    tips = sorted({tip for ids in TIP_VERTICES.values() for tip in (*ids.right, *ids.left)})
    regressors = [models.right.J_regressor, models.left.J_regressor]
    if models.interhand_regressor is not None:
        regressors.append(models.interhand_regressor.astype(np.float64))
    # Published MANO has one J_regressor for both sides: its rows are stored once.
    rows, row_of = np.unique(np.concatenate(regressors), axis=0, return_inverse=True)
    row_of = NUM_MANO_JOINTS + len(tips) + row_of.reshape(-1)

    point = np.full((len(JointSet), NUM_HANDS, NUM_JOINTS), -1, np.int64)
    for slot, side in ((RIGHT, "right"), (LEFT, "left")):
        on_mesh = row_of[NUM_MANO_JOINTS * slot : NUM_MANO_JOINTS * (slot + 1)]
        for name, ids in TIP_VERTICES.items():
            skeleton = on_mesh if name == "freihand" else np.arange(NUM_MANO_JOINTS)
            fingertips = [NUM_MANO_JOINTS + tips.index(tip) for tip in getattr(ids, side)]
            mano21 = np.concatenate((skeleton, fingertips))
            point[JointSet[name], slot] = mano21[list(STANDARD_FROM_MANO21)]
    if models.interhand_regressor is not None:
        interhand = row_of[NUM_HANDS * NUM_MANO_JOINTS :]
        point[JointSet.interhand26m] = interhand[list(STANDARD_FROM_INTERHAND)]
    return JointRegressors(
        tips=torch.tensor(tips),
        rows=torch.from_numpy(rows.astype(np.float32)),
        point=torch.from_numpy(point),
    )


def regress_joints(
    vertices: Float[Tensor, "*b 778 3"],
    skeleton: Float[Tensor, "*b 16 3"],
    regressors: JointRegressors,
    joint_set: Integer[Tensor, "*b"],
    is_right: Bool[Tensor, "*b"],
) -> Float[Tensor, "*b 21 3"]:
    """Return each hand's 21 joints in its joint convention, standard order; unit of the vertices.

    Args:
        vertices: Posed mesh.
        skeleton: The 16 joints of the posed skeleton that ``ManoLayer`` returns with the mesh.
        regressors: From the MANO files that the mesh was decoded with.
        joint_set: ``JointSet`` of each hand. NaN where the regressor's file is absent.
        is_right: The side as recorded: the vertices of a mirrored left hand keep their indices, so
            its joints are those of the left convention on the mirrored mesh.
    """
    with torch.autocast(vertices.device.type, enabled=False):
        rows = regressors.rows.to(vertices.dtype)
        # Relative to the mesh's centre: TF32 would round a hand at 1 m by half a millimetre.
        centre = vertices.mean(-2, keepdim=True)
        on_mesh = torch.einsum("rv,...vx->...rx", rows, vertices - centre)
        on_mesh = on_mesh + rows.sum(-1, keepdim=True) * centre
        tips = vertices.index_select(-2, regressors.tips)
        points = torch.cat((skeleton, tips, on_mesh), -2)
        point = regressors.point[joint_set, (~is_right).long()][..., None]  # [*b, 21, 1]
        joints = points.gather(-2, point.clamp(min=0).expand(*point.shape[:-1], 3))
        return torch.where(point < 0, float("nan"), joints)
