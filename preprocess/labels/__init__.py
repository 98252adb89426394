"""Label conversion, derived labels and quality flags."""
