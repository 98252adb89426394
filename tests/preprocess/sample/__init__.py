"""Tests of preprocess.sample."""
