"""Tests of preprocess.sample.arctic."""
