"""Tests of train.protocols."""
