"""Regressor from image to hands and the object they act on: backbone, MLP, MANO or joint decoder.

One hand per crop, or both hands of a person and their object. Inside the MLP, an optional temporal
transformer refines each frame's features with those of the other frames of its window.

Shape legend: b = images.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.hand import NUM_HANDS
from model.mano.files import ManoModels
from model.mean_pose import MeanPose
from model.network import Inputs, Network
from model.parts.backbone import build_backbone
from model.parts.hand_decoder import OBJECT_SIZES, HandDecoder, decode_object, known_camera
from model.parts.temporal import TemporalEncoder, camera_of_crop
from model.prediction import Prediction
from model.regressor.config import Readout, RegressorConfig, Scene


class HandRegressor(Network):
    """Image-to-hand regressor; see the module docstring."""

    base: Tensor
    decoder: HandDecoder

    def __init__(
        self,
        config: RegressorConfig,
        *,
        input_px: int,
        mano: ManoModels | None,
        right_only: bool = False,
        load_weights: bool = True,
    ) -> None:
        """Build the network; ``model.network.Network`` describes the arguments."""
        is_scene = config.scene is Scene.hand_object
        super().__init__(input_px=input_px, num_hands=NUM_HANDS if is_scene else 1)
        self.backbone, width = build_backbone(
            config, input_px, grid=config.readout is Readout.grid, load_weights=load_weights
        )
        self.temporal: TemporalEncoder | None = None
        if config.temporal_layers:
            sizes = config.hidden, config.temporal_width, config.temporal_layers
            self.temporal = TemporalEncoder(*sizes)
        assert not config.needs_mano or mano is not None, "train.build.required_mano refuses this"
        self.decoder = HandDecoder(
            input_px=input_px, mano=mano if config.needs_mano else None, right_only=right_only
        )
        self.parts = (self.num_hands * self.decoder.num_values, sum(OBJECT_SIZES) * is_scene)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, sum(self.parts))
        )
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        self.register_buffer("base", torch.zeros(sum(self.parts)))

    @property
    def has_object(self) -> bool:
        """Whether the object is predicted; it is whenever both hands are."""
        return self.parts[1] > 0

    def start_from(self, mean: MeanPose) -> None:
        """Initialise the output to ``mean``.

        Raises:
            ValueError: If the network learns from MANO labels and there are none.
        """
        self.base.copy_(self._numbers_of(mean))

    def forward(self, inputs: Inputs) -> Prediction:
        """Return hands and object in the camera frame of the input pixels, metres."""
        K = known_camera(inputs.K)
        features = self.backbone(inputs.image.contiguous(memory_format=torch.channels_last))
        with torch.autocast(inputs.image.device.type, enabled=False):  # geometry stays in float32
            hidden = self.mlp[:-1](features.float())
            if self.temporal is not None:
                real = inputs.is_real
                if real is None:
                    real = torch.ones_like(inputs.joint_set, dtype=torch.bool)
                camera = camera_of_crop(K, self.input_px)
                windows = (x.unflatten(0, (-1, inputs.num_frames)) for x in (hidden, camera, real))
                hidden = self.temporal(*windows).flatten(0, 1)
            return self._decode(self.mlp[-1](hidden) + self.base, K, inputs)

    def predict_mean(self, mean: MeanPose, inputs: Inputs) -> Prediction:
        """Return ``mean`` for every image."""
        numbers = self._numbers_of(mean).to(inputs.K.device)
        return self._decode(numbers.expand(len(inputs.K), -1), known_camera(inputs.K), inputs)

    def _numbers_of(self, mean: MeanPose) -> Float[Tensor, " n"]:
        hands = self.decoder.start(mean).flatten()
        return hands if mean.object_state is None else torch.cat((hands, mean.object_state))

    def _decode(self, numbers: Tensor, K: Tensor, inputs: Inputs) -> Prediction:
        of_hands, of_object = numbers.split_with_sizes(self.parts, -1)
        hands = of_hands.reshape(numbers.shape[0], self.num_hands, -1)
        sides = inputs.decode_right, inputs.joint_set, inputs.is_right
        return Prediction(
            hands=self.decoder(hands, K, *sides),
            object=decode_object(of_object, K, self.input_px) if self.has_object else None,
        )
