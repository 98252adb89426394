"""One hand, or two hands and an object: places, what is predicted before training, windows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.geometry.camera import lift_from_crop, place_in_crop
from model.geometry.rotation import rot6d_to_rotmat
from model.hand import JointSet
from model.mano.files import ManoModels, mano_forward
from model.mean_pose import MeanPose
from model.network import Inputs
from model.parts.temporal import TemporalEncoder, camera_of_crop, positions
from model.prediction import Prediction, hands_of
from model.regressor.config import Head, RegressorConfig, Scene
from model.regressor.net import HandRegressor

PX = 32
REAL = torch.ones(1, 5, dtype=torch.bool)
K = torch.tensor([[60.0, 0.5, 15.0], [0.0, 58.0, 17.0], [0.0, 0.0, 1.0]])


def network(mano: ManoModels | None, family: Scene, **changes: object) -> HandRegressor:
    torch.manual_seed(0)
    config = RegressorConfig(
        scene=family,
        backbone="test_resnet",
        pretrained=False,
        hidden=16,
        head=Head.joints if mano is None else Head.mano,
        **changes,  # type: ignore[arg-type]
    )
    return HandRegressor(config, input_px=PX, mano=mano, load_weights=False).eval()


def asked(
    model: HandRegressor, image: Tensor, num_frames: int = 1, is_real: Tensor | None = None
) -> Prediction:
    num = len(image)
    right = torch.tensor([[True, False]] * num)[:, : model.num_hands]
    sets = torch.full((num,), int(JointSet.smplx))
    with torch.inference_mode():
        inputs = Inputs(
            image, K.expand(num, 3, 3), right, sets, right, is_real, num_frames=num_frames
        )
        prediction: Prediction = model(inputs)
    return prediction


@given(x=st.floats(-2, 2), y=st.floats(-2, 2), depth=st.floats(-3, 3))
def test_a_place_in_the_crop_is_a_pixel_and_a_depth(x: float, y: float, depth: float) -> None:
    place, camera = torch.tensor([[[x, y, depth]]], dtype=torch.float64), K.double()[None]
    point = lift_from_crop(place, camera, PX)
    uvw = K.double().numpy() @ point[0, 0].numpy()
    pixel = uvw[:2] / uvw[2]
    np.testing.assert_allclose(pixel, [15.5 + 32 * x, 15.5 + 32 * y], atol=1e-9)
    # exp(0): a quarter of a metre fills the crop
    unit = np.sqrt(60.0 * 58.0) * 0.25 / 32
    assert uvw[2] == pytest.approx(unit * np.exp(depth))
    back = place_in_crop(point, camera, PX)
    torch.testing.assert_close(back, place, atol=1e-9, rtol=0)


def test_before_training_the_mean_is_predicted(mano: ManoModels) -> None:
    model = network(mano, Scene.hand_object)
    rng = np.random.default_rng(0)
    pose, beta = rng.normal(0, 0.3, (2, 96)), rng.normal(0, 1, (2, 10))
    pose += np.tile([1.0, 0, 0, 0, 1, 0], 16)
    place = np.array([[0.1, -0.2, 0.3], [-0.1, 0.0, 0.2]])
    turned, angle, where = rng.normal(0, 1, 6), 0.7, np.array([0.05, 0.02, 0.4])
    mean = MeanPose(
        joints_rel=torch.zeros(2, 21, 3),
        vertices_rel=None,
        theta_rot6d=torch.from_numpy(pose).float(),
        beta=torch.from_numpy(beta).float(),
        place=torch.from_numpy(place).float(),
        object_state=torch.from_numpy(np.r_[turned, angle, where]).float(),
        num_hands=2,
    )
    model.start_from(mean)
    right, sets = torch.tensor([[True, False]]), torch.full((1,), int(JointSet.smplx))
    said = model.predict_mean(mean, Inputs(torch.zeros(1, 3, PX, PX), K[None], right, sets, right))
    torch.nn.init.zeros_(model.mlp[-1].weight)  # type: ignore[arg-type]
    begun = asked(model, torch.randn(1, 3, PX, PX))
    torch.testing.assert_close(hands_of(begun).vertices, hands_of(said).vertices)
    assert begun.object is not None
    assert said.object is not None
    torch.testing.assert_close(begun.object.transl, said.object.transl)
    hands = hands_of(said)
    assert hands.vertices is not None
    assert hands.transl is not None
    for hand, own in enumerate((mano.right, mano.left)):
        theta = rot6d_to_rotmat(torch.from_numpy(pose[hand]).view(16, 6))
        from scipy.spatial.transform import Rotation

        axis_angle = Rotation.from_matrix(theta.numpy()).as_rotvec().reshape(1, 48)
        transl = hands.transl[:, hand].detach().double().numpy()
        vertices, skeleton = mano_forward(own, axis_angle, beta[hand][None], transl)
        np.testing.assert_allclose(hands.vertices[:, hand].detach(), vertices, atol=1e-5)
        root = lift_from_crop(torch.from_numpy(place)[None], K.double()[None], PX)[0, hand]
        np.testing.assert_allclose(skeleton[0, 0], root, atol=1e-5)
        np.testing.assert_allclose(hands.joints_3d[0, hand, 0].detach(), root, atol=1e-5)
    expected = rot6d_to_rotmat(torch.from_numpy(turned).float())
    torch.testing.assert_close(said.object.rotmat[0], expected)
    assert said.object.arti_rad.item() == pytest.approx(angle)
    place_3d = lift_from_crop(torch.from_numpy(where).float()[None, None], K[None], PX)[0, 0]
    torch.testing.assert_close(said.object.transl[0], place_3d)


@pytest.mark.parametrize("family", list(Scene))
def test_a_head_of_joints_places_every_wrist(family: Scene) -> None:
    model = network(None, family)
    said = asked(model, torch.randn(3, 3, PX, PX))
    assert hands_of(said).joints_3d.shape == (3, model.num_hands, 21, 3)
    assert hands_of(said).vertices is None
    assert (said.object is None) == (family is Scene.hand)


def test_an_image_without_a_camera_costs_no_gradient(mano: ManoModels) -> None:
    model = network(mano, Scene.hand_object, temporal_layers=1, temporal_width=64).train()
    model.base[:96] = model.base[109:205] = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(16)
    model.base[218:224] = torch.tensor([1.0, 0, 0, 0, 1, 0])
    cameras = K.expand(2, 3, 3).clone()
    cameras[1] = torch.nan
    right, sets = torch.tensor([[True, False]] * 2), torch.full((2,), int(JointSet.smplx))
    said = model(Inputs(torch.randn(2, 3, PX, PX), cameras, right, sets, right, num_frames=2))
    torch.autograd.backward(hands_of(said).joints_3d[0].sum() + said.object.transl[0].sum())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)
    assert max(float(g.abs().max()) for g in grads) > 0


# --- windows --------------------------------------------------------------------------------------


def test_a_fresh_encoder_changes_nothing_and_a_trained_one_looks_at_its_window_only() -> None:
    model = network(None, Scene.hand_object, temporal_layers=2, temporal_width=64)
    image = torch.randn(6, 3, PX, PX, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([hands_of(asked(model, frame[None])).joints_3d for frame in image])
    torch.testing.assert_close(hands_of(asked(model, image, 3)).joints_3d, alone)
    encoder = model.temporal
    assert encoder is not None
    torch.nn.init.normal_(encoder.leave.weight)
    torch.nn.init.normal_(model.mlp[-1].weight)  # type: ignore[arg-type]
    before = hands_of(asked(model, image, 3)).joints_3d
    image[4] += 1.0
    moved = (hands_of(asked(model, image, 3)).joints_3d - before).abs().amax((1, 2, 3))
    assert (moved[3:] > 1e-4).all()
    assert (moved[:3] == 0).all()


def test_frames_that_fill_a_window_up_are_not_looked_at() -> None:
    model = network(None, Scene.hand_object, temporal_layers=1, temporal_width=64)
    encoder = model.temporal
    assert encoder is not None
    for weight in (encoder.leave.weight, encoder.gate, encoder.distance):
        torch.nn.init.normal_(weight)
    image = torch.randn(3, 3, PX, PX, generator=torch.Generator().manual_seed(1))
    real = torch.tensor([True, True, False])
    before = hands_of(asked(model, image, 3, real)).joints_3d
    image[2] += 1.0
    after = hands_of(asked(model, image, 3, real)).joints_3d
    assert torch.equal(before[:2], after[:2])
    assert (hands_of(asked(model, image, 3)).joints_3d - after)[:2].abs().max() > 1e-4


def test_the_encoder_knows_the_order_of_frames() -> None:
    torch.manual_seed(0)
    encoder = TemporalEncoder(8, 64, 1)
    torch.nn.init.normal_(encoder.leave.weight)
    features = torch.randn(1, 4, 8)
    camera = torch.zeros(1, 4, 3)
    forth, back = (
        encoder(features, camera, REAL[:, :4]),
        encoder(features.flip(1), camera, REAL[:, :4]).flip(1),
    )
    assert (forth - back).abs().max() > 1e-3


def test_frames_are_averaged_within_their_window() -> None:
    torch.manual_seed(0)
    encoder = TemporalEncoder(16, 64, 1)
    torch.nn.init.ones_(encoder.gate)
    torch.nn.init.normal_(encoder.distance)
    features, camera = torch.randn(2, 5, 16), torch.zeros(2, 5, 3)
    tokens = encoder.layers(
        encoder.enter(torch.cat((features, camera), -1)) + positions(5, 64, torch.device("cpu"))
    ).detach()
    query = encoder.query(tokens).detach().numpy().reshape(2, 5, 8, 32)
    key = encoder.key(tokens).detach().numpy().reshape(2, 5, 8, 32)
    bias, values = encoder.distance.detach().numpy(), features.numpy().reshape(2, 5, 8, 2)
    expected = np.zeros((2, 5, 8, 2))
    for b in range(2):
        for h in range(8):
            for i in range(5):
                score = [
                    query[b, i, h] @ key[b, j, h] / np.sqrt(32) + bias[h, i - j + 16]
                    for j in range(5)
                ]
                share = np.exp(score) / np.sum(np.exp(score))
                expected[b, i, h] = share @ values[b, :, h]
    found = encoder(features, camera, REAL.expand(2, 5)).detach().numpy()
    np.testing.assert_allclose(found, expected.reshape(2, 5, 16), atol=1e-5)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.hidden must be a multiple of 8"):
        TemporalEncoder(20, 64, 1)


def test_the_encoder_is_told_the_camera_of_every_crop() -> None:
    found = camera_of_crop(K.double()[None], PX)[0]
    expected = [np.log(np.sqrt(60.0 * 58.0) / 32), (15.0 - 15.5) / 32, (17.0 - 15.5) / 32]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    encoder = TemporalEncoder(8, 64, 1)
    torch.nn.init.normal_(encoder.leave.weight)
    features, camera = torch.randn(1, 4, 8), torch.zeros(1, 4, 3)
    moved = camera.clone()
    moved[0, 2, 1] = 0.5
    assert (
        encoder(features, camera, REAL[:, :4]) - encoder(features, moved, REAL[:, :4])
    ).abs().max() > 1e-4


def test_positions_are_the_formula() -> None:
    found = positions(5, 8, torch.device("cpu"))
    for t in range(5):
        for i in range(4):
            angle = t / 10000 ** (i / 4)
            assert found[t, i] == pytest.approx(np.sin(angle), abs=1e-6)
            assert found[t, 4 + i] == pytest.approx(np.cos(angle), abs=1e-6)
