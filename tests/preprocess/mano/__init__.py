"""Tests of preprocess.mano."""
