"""Hypothesis strategies: float64 tensors of cameras, crops, rotations, points and hands.

Importing this module loads the profile of the whole suite: no deadline (the first call of a torch
operation is slow), and the same examples in every run, so that a red build stays red.
"""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

settings.register_profile("handloom", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("handloom")


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


def angles() -> st.SearchStrategy[Tensor]:
    """Return angles in [-pi, pi], []."""
    return _floats(-math.pi, math.pi).map(lambda a: torch.tensor(a, dtype=torch.float64))


def flags() -> st.SearchStrategy[Tensor]:
    """Return booleans, []."""
    return st.booleans().map(torch.tensor)


@st.composite
def rotvecs(draw: st.DrawFn) -> Tensor:
    """Return axis-angle vectors [3] with angles in [0, pi], many of them close to the ends."""
    axis = draw(hnp.arrays(np.float64, 3, elements=_floats(-1, 1)))
    length = float(np.linalg.norm(axis))
    axis = axis / length if length > 1e-3 else np.array([0.0, 0.0, 1.0])
    near = 10.0 ** draw(_floats(-12, -1))
    angle = draw(st.sampled_from([draw(_floats(0, math.pi)), near, math.pi - near, 0.0]))
    return torch.from_numpy(axis * angle)


@st.composite
def cameras(draw: st.DrawFn) -> Tensor:
    """Return intrinsics [3, 3] with fx != fy and a skew."""
    fx, fy = draw(_floats(200, 1500)), draw(_floats(200, 1500))
    cx, cy, skew = draw(_floats(50, 600)), draw(_floats(50, 600)), draw(_floats(-5, 5))
    K = [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]
    return torch.tensor(K, dtype=torch.float64)


@st.composite
def points_ahead(draw: st.DrawFn, num: int = 5) -> Tensor:
    """Return camera-frame points [num, 3], metres, 0.3 to 2 m in front of the camera."""
    xy = draw(hnp.arrays(np.float64, (num, 2), elements=_floats(-0.4, 0.4)))
    z = draw(hnp.arrays(np.float64, (num, 1), elements=_floats(0.3, 2.0)))
    return torch.from_numpy(np.concatenate([xy, z], 1))


@st.composite
def squares(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Return centre [2] and side [] in image pixels (off the image too), and the crop's side."""
    center = draw(hnp.arrays(np.float64, 2, elements=_floats(-100, 800)))
    size = torch.tensor(draw(_floats(20, 900)), dtype=torch.float64)
    return torch.from_numpy(center), size, draw(st.sampled_from([1, 56, 223, 224, 256]))


@st.composite
def affines(draw: st.DrawFn) -> Tensor:
    """Return well-conditioned affines [2, 3]: turn, scale 0.2 to 5, mild shear, any shift."""
    angle, scale = draw(_floats(-math.pi, math.pi)), draw(_floats(0.2, 5))
    shear = draw(_floats(-0.3, 0.3))
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    shift = draw(hnp.arrays(np.float64, 2, elements=_floats(-500, 500)))
    A = [[c, shear * c - s, shift[0]], [s, shear * s + c, shift[1]]]
    return torch.tensor(A, dtype=torch.float64)


@st.composite
def hands(draw: st.DrawFn, num_hands: int = 3, num_points: int = 21) -> Tensor:
    """Return point sets the size of a hand [num_hands, num_points, 3], metres, 0.5 m away."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = rng.normal(0, 0.04, (num_hands, num_points, 3))
    return torch.from_numpy(points + rng.normal([0, 0, 0.5], 0.1, (num_hands, 1, 3)))
