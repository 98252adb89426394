"""What a run shows: log, meters, pictures, manifest."""
