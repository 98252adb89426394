"""Rotations, cameras, crops and alignment; the only place for such maths."""
