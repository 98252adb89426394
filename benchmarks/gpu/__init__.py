"""``python -m benchmarks gpu``: the GPU suite."""
