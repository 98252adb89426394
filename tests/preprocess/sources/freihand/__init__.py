"""Tests of preprocess.sources.freihand."""
