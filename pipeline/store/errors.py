"""What can be wrong with a store; every message names path, expected, found and the cure."""


class StoreError(ValueError):
    """A store cannot be used."""


class StoreVersionError(StoreError):
    """The store has another format version than this code reads."""


class StoreUnfinishedError(StoreError):
    """The build was not finished."""


class StoreCorruptError(StoreError):
    """The bytes on disk are not what the build wrote."""
