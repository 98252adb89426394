"""What every command shares: the CLI, files, progress, pages."""
