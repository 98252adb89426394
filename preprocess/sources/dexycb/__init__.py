"""Reader of DexYCB."""
