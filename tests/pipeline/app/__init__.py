"""Tests of pipeline.app."""
