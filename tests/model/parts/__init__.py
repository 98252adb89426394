"""Tests of the parts that networks share."""
