"""Networks for use without this package."""
