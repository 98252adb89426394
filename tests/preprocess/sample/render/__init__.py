"""Tests of preprocess.sample.render."""
