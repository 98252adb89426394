"""Configuration of the image-to-hand regressor; imports nothing heavy."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from model.config import BackboneConfig

MOST_WIDE: Final = 65_536
MOST_DEEP: Final = 1000
"""Bounds that only a damaged configuration exceeds."""


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
    """Every cell of the feature map, projected to a few channels, which keeps spatial positions.
    Learns faster than pooling from scratch on small data."""
    transformer = "transformer"
    """A transformer over the cells of the last feature maps and one learned query for each
    rotation, for the shape and for the place."""


class Scene(Enum):
    """Content of an input image."""

    hand = "hand"
    """One hand: pipeline.view.kind=hand."""
    hand_object = "hand_object"
    """Both hands of a person and the object they act on: pipeline.view.kind=hand_object or
    frame."""


@dataclass(kw_only=True, slots=True)
class RegressorConfig(BackboneConfig):
    """Image-to-hand regressor: a backbone, an MLP and a MANO or joint decoder."""

    family: str = "regressor"
    """Kind of network; chosen with model=FAMILY."""
    scene: Scene = Scene.hand
    """One hand per crop, or both hands and the object they act on."""
    head: Head = Head.mano
    """Predict MANO parameters or plain joints."""
    readout: Readout = Readout.pooled
    """pooled: the backbone's own pooled features. grid: its whole last feature map, projected to a
    few channels; learns faster from scratch on small data. transformer: learned queries attend to
    the cells of the last model.levels feature maps."""
    levels: int = 2
    """readout=transformer: feature maps that are read, from the last one on; of a ViT, blocks."""
    readout_width: int = 512
    """readout=transformer: width of a token, a multiple of 64."""
    readout_layers: int = 6
    """readout=transformer: layers."""
    hidden: int = 1024
    """Width of the regression head."""
    temporal_layers: int = 0
    """Layers of the temporal transformer over a window (pipeline.window.length > 1), which refines
    each frame's features; 0 = frames are independent."""
    temporal_width: int = 256
    """Width of the temporal transformer, a multiple of 64."""

    def __post_init__(self) -> None:
        """Check the values."""
        BackboneConfig.__post_init__(self)
        if not 1 <= self.hidden <= MOST_WIDE:
            raise ValueError(f"model.hidden must be in 1..{MOST_WIDE}, got {self.hidden}")
        if not 0 <= self.temporal_layers <= MOST_DEEP:
            raise ValueError(
                f"model.temporal_layers must be in 0..{MOST_DEEP}, got {self.temporal_layers}"
            )
        if self.levels not in (1, 2) or not 1 <= self.readout_layers <= MOST_DEEP:
            raise ValueError(
                "model.levels must be 1 or 2 and model.readout_layers at least 1, got "
                f"{self.levels} and {self.readout_layers}"
            )
        if not 0 < self.readout_width <= MOST_WIDE or self.readout_width % 64:
            raise ValueError(
                f"model.readout_width must be a multiple of 64, got {self.readout_width}"
            )
        if self.temporal_layers and self.readout is Readout.transformer:
            raise ValueError(
                "model.temporal_layers refine one vector per frame, which "
                "model.readout=transformer has not; use model.readout=pooled or grid"
            )
        if not 0 < self.temporal_width <= MOST_WIDE or self.temporal_width % 64:
            raise ValueError(
                f"model.temporal_width must be a multiple of 64 up to {MOST_WIDE}, got "
                f"{self.temporal_width}"
            )

    @property
    def views(self) -> frozenset[str]:
        """Views that show a single hand, or both hands and the object."""
        return frozenset({"hand"} if self.scene is Scene.hand else {"hand_object", "frame"})

    @property
    def min_window(self) -> int:
        """Temporal layers need neighbouring frames."""
        return 2 if self.temporal_layers else 1

    @property
    def needs_mano(self) -> bool:
        """A MANO head decodes with the MANO files."""
        return self.head is Head.mano
