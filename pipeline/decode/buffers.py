"""How far reader and decoder run ahead, and who keeps which memory alive until when.

No bytes are copied on their way through the decoder, so each buffer needs an owner for as long as
someone reads it. For one batch, in order:

1. Encoded bytes and corners are views of the store's memory map or fresh arrays. ``read_ahead``
   makes them in a thread, up to ``READ_AHEAD`` batches before the decoder asks for them.
2. DALI takes up to ``PREFETCH`` batches more than it has given back, and reads them in place
   (``no_copy``): nobody but Python holds them. So whoever makes them, ``source.encoded_batches``
   and ``stream``, keeps the newest ``KEPT_ENCODED``. When batch ``n`` is made, DALI has given back
   at least all up to ``n - READ_AHEAD - PREFETCH``; the two more are slack for a GPU, whose decode
   may still run when its output is handed over.
3. Decoded crops belong to DALI and go to torch without a copy. On a CPU a tensor holds its buffer.
   On a GPU it does so too, but DALI writes into a buffer again as soon as no tensor holds it, when
   kernels that read it may still be queued. So ``graph.decode_crops`` keeps the newest
   ``KEPT_DECODED`` batches, each with an event that it waits for before it lets go.

The consumer need not care: a batch may be used until it is dropped.
"""

from typing import Final

READ_AHEAD: Final = 4
"""Encoded batches made ahead of the one that the decoder asks for; 13 MB with JPEGs of 50 KB."""
PREFETCH: Final = 2
"""Batches that the decoder takes ahead of the one that it gives back."""
KEPT_ENCODED: Final = READ_AHEAD + PREFETCH + 2
"""Encoded batches kept alive by whoever makes them."""
KEPT_DECODED: Final = 2
"""Decoded batches kept alive on a GPU until what was queued with them is done."""
