"""Options of ``python -m train doctor``. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class DoctorConfig:
    """Check this machine. Treat as read-only."""

    store: str | None = None
    """Store to open and to measure the disk with; null = neither."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null asks HANDLOOM_MANO."""
    out: str | None = None
    """File for the findings as JSON; null = none."""
