"""``python -m benchmarks preprocess``: image processing of a build."""
