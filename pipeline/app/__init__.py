"""What every command shares: the CLI, words for people, progress, files, the machine."""
