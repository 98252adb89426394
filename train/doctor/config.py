"""Options of ``python -m train doctor``. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class DoctorConfig:
    """Options of the machine check. Treat as read-only."""

    store: str | None = None
    """Store to open and to measure the disk speed with; null skips both checks."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null reads HANDLOOM_MANO."""
    out: str | None = None
    """JSON file to write the findings to, for example for a bug report; null = none."""
