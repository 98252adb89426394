"""Offline preprocessing: convert raw datasets to sharded Zarr stores."""
