"""Software rendering."""
