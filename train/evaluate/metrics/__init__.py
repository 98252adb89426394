"""Scores: one module per protocol, on shared sums and alignments."""
