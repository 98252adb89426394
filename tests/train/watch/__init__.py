"""Tests of train.watch."""
