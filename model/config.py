"""What the configurations of all model families have in common; imports nothing heavy.

Each family's own configuration is a subclass in its folder, and ``model.families`` lists them.
"""

from dataclasses import dataclass

from model.fields import check_fields


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Base of every family's configuration. Treat as read-only once the run has started."""

    family: str = "???"
    """Kind of network, a row of ``model.families``; chosen with model=FAMILY."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "model")

    @property
    def views(self) -> frozenset[str]:
        """Values of pipeline.view.kind that show what the network expects."""
        return frozenset({"hand", "hand_object", "frame"})

    @property
    def min_window(self) -> int:
        """Frames that pipeline.window.length must have at least."""
        return 1

    @property
    def needs_mano(self) -> bool:
        """Whether the network decodes MANO parameters, so that the MANO files are required."""
        return False


@dataclass(kw_only=True, slots=True)
class BackboneConfig(ModelConfig):
    """Configuration of a family whose network begins with an image backbone."""

    backbone: str = "resnet50"
    """Name of a timm model."""
    pretrained: bool = True
    """Start from published weights. Without network or local weights this is an error, never a
    silent fall-back: say model.pretrained=false to train from scratch."""
    weights: str | None = None
    """Local file with the backbone's weights; null asks the hub."""
    checkpoint_activations: bool | int | float = 0.0
    """Fraction of the backbone's blocks, 0 to 1, from the input on, whose activations are computed
    again in the backward pass instead of kept; true is 1, false 0. All of them: much less memory,
    about a third more time; 0.5: half of the blocks. Between 0 and 1 the backbone must be made of
    blocks, as ViTs and ResNets are."""

    def __post_init__(self) -> None:
        """Check the values."""
        ModelConfig.__post_init__(self)
        self.checkpoint_activations = float(self.checkpoint_activations)
        if not 0 <= self.checkpoint_activations <= 1:
            raise ValueError(
                "model.checkpoint_activations must lie in [0, 1], got "
                f"{self.checkpoint_activations:g}"
            )
        if self.weights is not None and not self.pretrained:
            raise ValueError("model.weights needs model.pretrained=true, got false")
