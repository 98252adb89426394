"""Contact sheets of a store."""
