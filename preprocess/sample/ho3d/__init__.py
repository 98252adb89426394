"""Synthetic HO-3D dataset in the official layout."""
