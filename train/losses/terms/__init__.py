"""Eager loss terms: the readable reference implementation.

Every term returns one value per sample [b]: the mean over its valid items, exactly 0 with zero
gradient where nothing is valid. Labels and predictions are selected with the mask before any maths,
so a masked NaN affects neither value nor gradient. Float64 inputs are computed in float64. Nothing
synchronises with the device.

``batch_variance`` is a property of the batch and the same for all of its samples; every other term
of a sample depends on that sample only.
"""
