"""Tests of preprocess.sample.interhand26m."""
