"""Synthetic ARCTIC dataset in the official layout."""
