"""Errors of stores; every message names the path, what was expected and found, and the fix."""


class StoreError(ValueError):
    """A store cannot be used."""


class StoreVersionError(StoreError):
    """The store's format version differs from the one this code reads."""


class StoreUnfinishedError(StoreError):
    """The build was not finished."""


class StoreCorruptError(StoreError):
    """The bytes on disk are not what the build wrote."""
