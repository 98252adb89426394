"""Building, verifying and reporting a store."""
