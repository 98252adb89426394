"""Synthetic FreiHAND dataset in the official layout."""
