"""Tests of preprocess.sample.freihand."""
