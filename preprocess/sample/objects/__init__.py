"""Synthetic objects: shapes, textures and signed distances."""
