"""Tests of train.evaluate.metrics."""
