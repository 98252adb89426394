"""Configuration of the toy family."""

from dataclasses import dataclass

from model.config import ModelConfig


@dataclass(kw_only=True, slots=True)
class ToyConfig(ModelConfig):
    """A linear map of a shrunken image."""

    family: str = "toy"
    """Kind of network."""
    side: int = 8
    """Pixels that the image is shrunken to."""

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"model.side must be positive, got {self.side}")

    @property
    def views(self) -> frozenset[str]:
        return frozenset({"hand"})
