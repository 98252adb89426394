"""Tests of train.doctor."""
