"""Tests of pipeline.gather."""
