"""One optimiser step and what it needs."""
