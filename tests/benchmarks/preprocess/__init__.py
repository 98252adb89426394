"""Tests of benchmarks.preprocess."""
