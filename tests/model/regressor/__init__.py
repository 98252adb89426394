"""Tests of model.regressor."""
