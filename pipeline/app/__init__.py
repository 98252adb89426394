"""Shared by all commands: the CLI, console messages, progress, files, the machine."""
