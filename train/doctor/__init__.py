"""python -m train doctor."""
