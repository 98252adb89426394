"""The store format: the only code that writes, verifies and reads it."""
