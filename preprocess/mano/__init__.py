"""Conversion of the licensed MANO files to plain ``.npz``."""
