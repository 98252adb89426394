"""Loss groups, a module per model family."""
