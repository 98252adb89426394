"""Synthetic grasps."""
