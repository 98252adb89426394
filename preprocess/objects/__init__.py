"""Geometry of objects: shapes, distances, symmetries."""
