"""Small stand-in datasets in the official on-disk formats."""
