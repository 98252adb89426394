"""Reader of HO-3D."""
