"""Which samples come when: epochs, mixtures, windows."""
