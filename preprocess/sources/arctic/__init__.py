"""Reader of ARCTIC."""
