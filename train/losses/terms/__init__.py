"""Loss terms, eager: the reference that can be read.

Every term returns one value per sample [b]: the mean over its valid items, exactly 0 with zero
gradient where nothing is valid. Labels and predictions are selected with the mask before any maths,
so a NaN under it costs neither value nor gradient. Float64 goes through in float64. Nothing waits
for the device.

``batch_variance`` is a property of the batch and the same for all of its samples; every other term
of a sample depends on nothing but the sample.
"""
