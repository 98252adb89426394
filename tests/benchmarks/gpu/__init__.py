"""Tests of benchmarks.gpu."""
