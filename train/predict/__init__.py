"""python -m train predict."""
