"""Tests of preprocess.images."""
