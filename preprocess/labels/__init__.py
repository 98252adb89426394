"""Derived labels and quality flags."""
