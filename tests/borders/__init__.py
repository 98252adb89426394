"""Everything that is read from outside, damaged and hostile: see ``corpus``."""
