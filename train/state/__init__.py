"""What outlives a run: checkpoints, weights, mean pose."""
