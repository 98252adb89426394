"""Tests of preprocess.sample.grasp."""
