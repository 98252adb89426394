"""Tests of train.evaluate."""
