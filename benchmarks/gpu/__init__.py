"""python -m benchmarks gpu."""
