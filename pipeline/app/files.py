"""Files that every command reads and writes."""

from pathlib import Path


def existing(path: str, key: str) -> Path:
    """Return a path that exists.

    Raises:
        FileNotFoundError: If it does not; names the option.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"{key}={path!r} does not exist")
    return found
