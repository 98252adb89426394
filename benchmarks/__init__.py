"""Benchmarks of the store, loader, preprocessing, MANO layer, losses and training."""
