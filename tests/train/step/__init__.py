"""Tests of train.step."""
