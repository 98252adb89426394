"""Hands, cameras and networks; knows nothing of files of data."""
