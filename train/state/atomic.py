"""The atomic write of ``pipeline.app.files`` under the names that the checkpoints know."""

from pipeline.app.files import PARTIAL as TEMPORARY
from pipeline.app.files import replace_file, replacing
from pipeline.app.files import sync as sync_folder

__all__ = ["TEMPORARY", "replace_file", "replacing", "sync_folder"]
