"""Tests of pipeline.store."""
