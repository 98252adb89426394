"""Resampling of cached crops to augmented, normalised images."""
