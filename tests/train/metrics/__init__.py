"""Tests of train.metrics."""
