"""What a network's crops are like."""

from dataclasses import dataclass

from model.pretrained import InputSpec
from pipeline.config import ViewKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Crops:
    """Geometry and format of the crop: image square to network input."""

    spec: InputSpec
    margin: float
    """Side of the cached crop over the side of the input crop."""
    cache_px: int
    """Side of the cached crop, pixels."""
    view: ViewKind
    """What a crop shows."""
    is_known: bool
    """False: the run did not record the last three; they are the pipeline's defaults."""

    @property
    def sides(self) -> tuple[bool | None, ...]:
        """Whether each hand of a crop is right; None: as its box says."""
        return (None,) if self.view is ViewKind.hand else (True, False)
