"""Tests of train.state."""
