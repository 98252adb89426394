"""Tests of train.evaluate.protocols."""
