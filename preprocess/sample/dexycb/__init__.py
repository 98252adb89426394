"""Synthetic DexYCB dataset in the official layout."""
