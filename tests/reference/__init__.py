"""Independent oracles: loops and plain names, never imported by the product."""
