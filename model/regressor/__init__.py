"""The image-to-hand regressor."""
