"""Synthetic InterHand2.6M dataset in the official layout."""
