"""Small synthetic datasets in the official on-disk formats."""
