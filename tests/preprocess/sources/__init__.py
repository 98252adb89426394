"""Tests of preprocess.sources."""
