"""Network of the toy family."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from model.mano.files import ManoModels
from model.mean_pose import MeanPose
from model.network import Inputs, Network
from model.parts.hand_decoder import HandDecoder, known_camera
from model.prediction import Prediction
from tests.train.toy.config import ToyConfig


class ToyNet(Network):
    base: Tensor
    decoder: HandDecoder

    def __init__(
        self,
        config: ToyConfig,
        *,
        input_px: int,
        mano: ManoModels | None,
        right_only: bool = False,
        load_weights: bool = True,
    ) -> None:
        super().__init__(input_px=input_px, num_hands=1)
        self.side = config.side
        self.decoder = HandDecoder(input_px=input_px, mano=None)
        self.linear = nn.Linear(3 * config.side**2, self.decoder.num_values)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("base", torch.zeros(self.decoder.num_values))

    def start_from(self, mean: MeanPose) -> None:
        self.base.copy_(self.decoder.start(mean)[0])

    def forward(self, inputs: Inputs) -> Prediction:
        numbers = self.linear(adaptive_avg_pool2d(inputs.image.float(), self.side).flatten(1))
        sides = inputs.decode_right, inputs.joint_set, inputs.is_right
        hands = self.decoder((numbers + self.base)[:, None], known_camera(inputs.K), *sides)
        return Prediction(hands=hands)
