"""Reader of FreiHAND."""
