"""Losses, loop, evaluation."""
