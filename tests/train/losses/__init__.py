"""Tests of the loss terms, their kernels and their sum."""
