"""Conversion of the licensed MANO files."""
