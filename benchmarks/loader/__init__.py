"""``python -m benchmarks loader``: data loading on a CPU, compared with other loaders."""
