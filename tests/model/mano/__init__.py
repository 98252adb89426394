"""Tests of model.mano."""
