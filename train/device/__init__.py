"""Devices, ranks and signals."""
