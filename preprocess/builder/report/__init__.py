"""What a build says at its end: a text for the terminal and a page for a browser."""
