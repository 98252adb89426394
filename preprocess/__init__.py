"""Offline half: a raw dataset becomes one store."""
