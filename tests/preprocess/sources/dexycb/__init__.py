"""Tests of preprocess.sources.dexycb."""
