"""Tests of preprocess.labels."""
