"""Tests of pipeline.labels."""
