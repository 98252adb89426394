"""The folder format: your own images with annotations in one file, ``docs/your-data.md``."""
