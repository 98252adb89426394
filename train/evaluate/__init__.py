"""python -m train evaluate: metrics and official protocols."""
