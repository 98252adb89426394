"""A root that ends the process that touches it; alone here, so that a worker imports it quickly."""

import os
from pathlib import Path


class Fatal:
    """As the kernel does with a process when memory is out."""

    def __truediv__(self, _: str) -> Path:
        os._exit(9)
