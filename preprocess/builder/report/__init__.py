"""Build reports: a text for the terminal and an HTML page."""
