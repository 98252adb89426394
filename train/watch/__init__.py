"""Monitoring of a run: log, meters, pictures, manifest."""
