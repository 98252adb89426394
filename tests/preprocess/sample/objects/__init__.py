"""Tests of preprocess.sample.objects."""
