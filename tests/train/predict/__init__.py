"""Tests of train.predict."""
