"""Tests of train.device."""
