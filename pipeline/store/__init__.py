"""The store format: one place that writes, proves and reads it."""
