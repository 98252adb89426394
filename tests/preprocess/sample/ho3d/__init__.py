"""Tests of preprocess.sample.ho3d."""
