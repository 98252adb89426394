"""Tests of preprocess.objects."""
