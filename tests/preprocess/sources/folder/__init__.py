"""Tests of preprocess.sources.folder."""
