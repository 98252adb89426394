"""Tests of benchmarks.loader."""
