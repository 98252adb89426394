"""Size of a JPEG from its header, without decoding.

Source: ITU-T T.81, annex B.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_SIDE_PX: Final = 16_384
MAX_PIXELS: Final = 200_000_000
"""Largest image of a store; a header may claim 65535 x 65535, 13 GB when decoded."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})


def jpeg_size(jpeg: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return height and width that a decoder will use; None if there is no whole header."""
    data = np.ascontiguousarray(jpeg).data
    at, end = 2, len(data)
    if end < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return None
    while at + 9 <= end:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # filler
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _FRAMES:
            return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        elif marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None
