"""Tests of preprocess.sample.hand."""
