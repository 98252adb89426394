"""Tests of train.export."""
