"""Tests of preprocess.build."""
