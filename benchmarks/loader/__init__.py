"""python -m benchmarks loader."""
