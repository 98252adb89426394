"""Tests of preprocess.sources.ho3d."""
