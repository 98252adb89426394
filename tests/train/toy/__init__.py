"""A model family as a stranger would add it: four files, and a row in the test."""
