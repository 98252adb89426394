"""Regressor from image to hands and the object they act on: backbone, readout, decoder.

One hand per crop, or both hands of a person and their object. The readout is an MLP on the
backbone's features or a transformer over its feature maps. Inside the MLP, an optional temporal
transformer refines each frame's features with those of the other frames of its window.

Shape legend: b = images.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from model.hand import NUM_HANDS
from model.mano.files import ManoModels
from model.mean_pose import MeanPose
from model.network import Inputs, Network
from model.parts.backbone import build_backbone, build_level_backbone, feature_maps
from model.parts.hand_decoder import OBJECT_SIZES, HandDecoder, decode_object, known_camera
from model.parts.temporal import TemporalEncoder, camera_of_crop
from model.parts.token_readout import TokenReadout, output_mlp
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
        assert not config.needs_mano or mano is not None, "train.build.required_mano refuses this"
        self.decoder = HandDecoder(
            input_px=input_px, mano=mano if config.needs_mano else None, right_only=right_only
        )
        self.parts = (self.num_hands * self.decoder.num_values, sum(OBJECT_SIZES) * is_scene)
        self.temporal: TemporalEncoder | None = None
        self.readout: TokenReadout | None = None
        self.levels = config.levels
        if config.readout is Readout.transformer:
            self.backbone, channels = build_level_backbone(
                config, input_px, config.levels, load_weights=load_weights
            )
            of_object = [tuple((1, size) for size in OBJECT_SIZES)] if is_scene else []
            self.readout = TokenReadout(
                channels,
                [self.decoder.parts] * self.num_hands + of_object,
                input_px=input_px,
                width=config.readout_width,
                layers=config.readout_layers,
                hidden=config.hidden,
            )
        else:
            self.backbone, width = build_backbone(
                config, input_px, grid=config.readout is Readout.grid, load_weights=load_weights
            )
            if config.temporal_layers:
                sizes = config.hidden, config.temporal_width, config.temporal_layers
                self.temporal = TemporalEncoder(*sizes)
            self.mlp = output_mlp(width, config.hidden, sum(self.parts))
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

    def no_weight_decay(self) -> frozenset[str]:
        """Queries and level embeddings are vectors of their own."""
        names = () if self.readout is None else ("readout.queries", "readout.level")
        return frozenset(names)

    def forward(self, inputs: Inputs) -> Prediction:
        """Return hands and object in the camera frame of the input pixels, metres."""
        K = known_camera(inputs.K)
        image = inputs.image.contiguous(memory_format=torch.channels_last)
        if self.readout is not None:
            numbers = self.readout(feature_maps(self.backbone, image, self.levels), K)
            with torch.autocast(image.device.type, enabled=False):
                return self._decode(numbers + self.base, K, inputs)
        features = self.backbone(image)
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
