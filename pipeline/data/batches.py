"""Documents in batches: what the compiled kernels are given at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCH_ROWS = 1024
BATCH_CHARACTERS = 8_000_000


def batches(table: pa.Table) -> Iterator[pa.Table]:
    """Slices of at most BATCH_ROWS rows and about BATCH_CHARACTERS characters, so that a batch of books fits into
    memory too."""
    lengths = pc.binary_length(table["text"])  # pyright: ignore[reportAttributeAccessIssue] - pyarrow makes it on import
    sizes = np.cumsum(lengths.to_numpy())
    start = 0
    while start < table.num_rows:
        base = sizes[start - 1] if start else 0
        stop = int(np.searchsorted(sizes, base + BATCH_CHARACTERS, "right"))
        stop = min(max(stop, start + 1), start + BATCH_ROWS, table.num_rows)
        yield table.slice(start, stop - start)
        start = stop
