"""Tests of preprocess.show."""
