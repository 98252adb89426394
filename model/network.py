"""Base class and inputs of every model family's network: the trainer's interface to it.

Shape legend: b = images (frames of all windows, flattened), h = hands (slot 0 right, slot 1 left;
a single-hand crop has h = 1), s = input side in pixels.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from model.mano.layer import ManoLayer
from model.mean_pose import MeanPose
from model.parts.hand_decoder import HandDecoder
from model.prediction import Prediction


class Inputs(NamedTuple):
    """Network inputs from a batch: plain tensors, as required by compile, export and DDP."""

    image: Float[Tensor, "b 3 s s"]
    K: Float[Tensor, "b 3 3"]
    """Intrinsics of the input pixels; NaN where the camera is unknown."""
    decode_right: Bool[Tensor, "b h"]
    """The MANO side to decode with. Differs from ``is_right`` where a sample is mirrored."""
    joint_set: Int64[Tensor, " b"]
    """Joint convention of each sample, ``model.hand.JointSet``."""
    is_right: Bool[Tensor, "b h"]
    """The hand's side as recorded."""
    is_real: Bool[Tensor, " b"] | None = None
    """False: the frame is padding of its window. None: all frames are real."""
    object_id: Int64[Tensor, " b"] | None = None
    """Index of the object that the hands act on, -1 = none; None where it is not known."""
    num_frames: int = 1
    """Consecutive images in the batch that form one window."""


class Network(nn.Module):
    """Base class of every family's network; each member is the default of a family without it.

    A subclass is called as ``network(inputs) -> Prediction`` with the parts that it predicts, in
    the camera frame of the input pixels, metres. Its constructor takes ``(config, *, input_px,
    mano, right_only, load_weights)``: the side of the input, the MANO models or None, whether only
    right hands are decoded, and whether to fetch published weights (not before a checkpoint).
    """

    input_px: int
    num_hands: int
    """Hands per image; 1 where the crop shows one hand."""
    decoder: HandDecoder | None
    """Decodes network outputs to hands; None where no hands are predicted."""

    def __init__(self, *, input_px: int, num_hands: int) -> None:
        """Set the attributes common to all networks."""
        super().__init__()
        self.input_px = input_px
        self.num_hands = num_hands
        self.decoder = None

    @property
    def mano(self) -> ManoLayer | None:
        """The MANO layer that predictions are decoded with, if any."""
        return None if self.decoder is None else self.decoder.mano

    @property
    def has_object(self) -> bool:
        """Whether the object that the hands act on is predicted."""
        return False

    def forward(self, inputs: Inputs) -> Prediction:
        """Return the prediction for a batch of images."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def start_from(self, mean: MeanPose) -> None:
        """Initialise the output to the mean of the training set, where the family supports it."""

    def predict_mean(self, mean: MeanPose, inputs: Inputs) -> Prediction | None:
        """Return what the untrained network predicts for any image, without looking at it.

        The baseline that scores are printed beside; None where the family has none.
        """
        return None

    def no_weight_decay(self) -> frozenset[str]:
        """Names of matrix parameters excluded from weight decay."""
        return frozenset()

    def after_step(self) -> None:
        """Update what follows the weights after an optimiser step, on the device."""
