"""Configuration of the networks."""

from dataclasses import dataclass
from enum import Enum


class Head(Enum):
    """What the regressor predicts."""

    mano = "mano"
    """MANO parameters, decoded to vertices and joints; needs the MANO files."""
    joints = "joints"
    """21 joints, without MANO."""


class Readout(Enum):
    """How the backbone's last feature map becomes a vector."""

    pooled = "pooled"
    """The backbone's own pooling or class token."""
    grid = "grid"
    """Every cell of the map, narrowed to a few channels: where things are is kept. Learns faster
    from scratch, on small data, than pooling does."""


class Family(Enum):
    """What an image is taken to show."""

    hand = "hand"
    """One hand: pipeline.view.kind=hand."""
    hand_object = "hand_object"
    """Both hands of a person and the object they act on: pipeline.view.kind=hand_object or
    frame."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Image-to-hand regressor. Treat as read-only once the run has started."""

    family: Family = Family.hand
    """One hand per crop, or both hands and the object they act on."""
    backbone: str = "resnet50"
    """Name of a timm model; any that gives pooled features."""
    pretrained: bool = True
    """Start from published weights. Without network or local weights this is an error, never a
    silent fall-back: say model.pretrained=false to train from scratch."""
    weights: str | None = None
    """Local file with the backbone's weights; null asks the hub."""
    head: Head = Head.mano
    """Predict MANO parameters or plain joints."""
    readout: Readout = Readout.pooled
    """pooled: the backbone's own pooled features. grid: its whole last feature map, narrowed."""
    hidden: int = 1024
    """Width of the regression head."""
    temporal_layers: int = 0
    """Layers of a transformer over the frames of a window (pipeline.window.length > 1), which
    refines each frame's features; 0 = every frame alone."""
    temporal_width: int = 256
    """Width of that transformer, a multiple of 64."""
    checkpoint_activations: bool | int | float = 0.0
    """Share of the backbone's blocks, 0 to 1, from the input on, whose activations are computed
    again in the backward pass instead of kept; true is 1, false 0. All of them: much less memory,
    about a third more time; 0.5: half of the blocks. Between 0 and 1 the backbone must be made of
    blocks, as ViTs and ResNets are."""

    def __post_init__(self) -> None:
        """Check the values."""
        self.checkpoint_activations = float(self.checkpoint_activations)
        if not 0 <= self.checkpoint_activations <= 1:
            raise ValueError(
                "model.checkpoint_activations must lie in [0, 1], got "
                f"{self.checkpoint_activations:g}"
            )
        if self.hidden <= 0:
            raise ValueError(f"model.hidden must be positive, got {self.hidden}")
        if self.temporal_layers < 0:
            raise ValueError(
                f"model.temporal_layers must not be negative, got {self.temporal_layers}"
            )
        if self.temporal_width <= 0 or self.temporal_width % 64:
            raise ValueError(
                f"model.temporal_width must be a multiple of 64, got {self.temporal_width}"
            )
        if self.weights is not None and not self.pretrained:
            raise ValueError("model.weights needs model.pretrained=true, got false")
