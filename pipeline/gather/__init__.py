"""From cached crops to augmented, normalised images."""
