"""Tests of preprocess.sample.dexycb."""
