"""Tests of pipeline.pickles."""
