"""Terms of a store's data: licence and citation, or that it is synthetic."""

from typing import Final

from pipeline.store.schema import StoreAttributes

SYNTHETIC: Final = "synthetic"
"""Key in ``StoreAttributes.extra``: True if the data is rendered in the format of ``dataset``."""


def is_synthetic(attributes: StoreAttributes) -> bool:
    """Return whether the store was built from synthetic data."""
    return attributes.extra.get(SYNTHETIC) is True


def terms_of(attributes: StoreAttributes) -> dict[str, str]:
    """Return the lines that say what the data is, by heading: licence and cite, or synthetic."""
    if is_synthetic(attributes):
        sentence = (
            f"rendered by make-sample in the format of {attributes.dataset}: it is not that "
            "dataset, whose licence and citation do not apply, and no score on it counts"
        )
        return {SYNTHETIC: sentence}
    return {"licence": attributes.licence, "cite": attributes.citation}
