"""Hand geometry, MANO, cameras and networks; independent of any dataset format."""
