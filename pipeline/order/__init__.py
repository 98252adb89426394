"""Sample order: epochs, mixtures, windows."""
