"""Tests of preprocess.sources.interhand26m."""
