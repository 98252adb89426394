"""Tests of preprocess.sources.arctic."""
