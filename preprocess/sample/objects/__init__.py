"""Synthetic objects."""
