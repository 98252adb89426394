import dataclasses
import math

import numpy as np
import pytest
import torch

from model.geometry.crop import apply
from pipeline.config import AugmentConfig
from pipeline.gather.augment import AugmentParams, draw, identity, input_affine
from pipeline.philox import Stream, uniforms

OFF = AugmentConfig(
    rotation_deg=0, scale=0, shift=0, gain=0, brightness=0, contrast=0, saturation=0
)
ALL = AugmentConfig(
    rotation_deg=40, scale=0.3, shift=0.1, gain=0.2, brightness=0.3, contrast=0.4, saturation=0.5,
    erase_probability=0.25, erase_size=0.4,
)  # fmt: skip
IDS = torch.arange(3000)


def tensors(params: AugmentParams) -> dict[str, torch.Tensor]:
    return {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}


def test_a_sample_is_a_function_of_seed_epoch_and_id() -> None:
    together = tensors(draw(ALL, 5, 2, torch.tensor([9, 40, 7])))
    alone = tensors(draw(ALL, 5, 2, torch.tensor([40])))
    for name, values in alone.items():
        assert torch.equal(values[0], together[name][1]), name
    for other in (draw(ALL, 6, 2, torch.tensor([40])), draw(ALL, 5, 3, torch.tensor([40]))):
        for name in ("rotation_rad", "scale", "shift", "colour"):
            assert not torch.equal(getattr(other, name), alone[name]), name


def test_ranges_are_used_and_kept() -> None:
    params = draw(ALL, 0, 0, IDS)
    for values, limit in (
        (params.rotation_rad, math.radians(40)),
        (params.scale - 1, 0.3),
        (params.shift, 0.1),
    ):
        assert -limit < values.min() < -0.99 * limit
        assert 0.99 * limit < values.max() < limit
    side = params.erase[:, 2:] - params.erase[:, :2]
    is_erased = (side > 0).all(-1)
    assert is_erased.double().mean().item() == pytest.approx(0.25, abs=0.04)
    assert 0.39 < side.max() < 0.4
    assert (side[~is_erased] == 0).all()


def test_off_means_identity() -> None:
    drawn, nothing = tensors(draw(OFF, 0, 0, IDS)), tensors(identity(3000, torch.device("cpu")))
    for name, values in nothing.items():
        assert torch.equal(drawn[name], values), name
        assert drawn[name].dtype == values.dtype, name


def test_one_switch_leaves_the_other_parameters() -> None:
    every = tensors(draw(ALL, 0, 0, IDS))
    still = tensors(draw(dataclasses.replace(ALL, rotation_deg=0), 0, 0, IDS))
    assert (still.pop("rotation_rad") == 0).all()
    for name, values in still.items():
        assert torch.equal(values, every[name]), name


def test_colour_matches_the_steps_written_out() -> None:
    """Gain and brightness, then saturation, then contrast, one pixel at a time."""
    colour = draw(ALL, 11, 4, torch.tensor([123])).colour[0].double().numpy()
    u = 2 * uniforms(11, Stream.augment, 4, torch.tensor([123]), 16)[0].numpy() - 1
    for pixel in ((0.0, 0.0, 0.0), (255.0, 128.0, 3.0), (40.0, 90.0, 200.0)):
        rgb = [p * (1 + 0.2 * u[4 + i]) * (1 + 0.3 * u[7]) for i, p in enumerate(pixel)]
        grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
        rgb = [grey + (1 + 0.5 * u[9]) * (c - grey) for c in rgb]
        rgb = [127.5 + (1 + 0.4 * u[8]) * (c - 127.5) for c in rgb]
        # float32 matrix: 2^-24 relative of sums below 1000
        np.testing.assert_allclose(colour @ [*pixel, 1], rgb, atol=2e-4)


def test_input_affine_moves_turns_and_scales_the_square() -> None:
    size, center = torch.tensor([80.0, 80.0]).double(), torch.tensor([[50.0, 60.0]] * 2).double()
    params = AugmentParams(
        rotation_rad=torch.tensor([0.0, math.pi / 2]).double(),
        scale=torch.tensor([1.5, 1.0]).double(),
        shift=torch.tensor([[0.25, -0.5], [0.0, 0.0]]).double(),
        colour=torch.eye(3, 4).expand(2, 3, 4),
        erase=torch.zeros(2, 4).double(),
    )
    A = input_affine(params, center, size, torch.tensor([False, True]), 100)
    # first: centre moves by (20, -40), the side grows to 120
    corners = torch.tensor([[70.0 - 60, 20 - 60], [70 + 60, 20 + 60]]).double()
    np.testing.assert_allclose(apply(A[0], corners), [[-0.5, -0.5], [99.5, 99.5]], atol=1e-9)
    # second: right of the centre goes left by the mirror, then up by the clockwise quarter turn
    moved = apply(A[1], center[:1] + torch.tensor([[8.0, 0.0]]))
    np.testing.assert_allclose(moved, [[49.5, 49.5 - 10]], atol=1e-9)
