"""python -m benchmarks preprocess."""
