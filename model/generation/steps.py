"""The pass over one token of each of several sequences, on CUDA by graphs: a GPU is done with it sooner than Python has
asked for its hundreds of kernels, so they are asked for once and played back (as vLLM and gpt-fast do).

A graph has a fixed number of rows and looks back over a fixed number of positions, so there is one for each size of
either, recorded when it is first needed. Rows that are not needed point to the spare slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST = 256
"""Fewest positions that are looked back over."""


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    given: Tensor  # int64 [3, rows]
    logits: Tensor  # fp32 [rows, vocab]


def sizes(rows: int, filled: int, slots: int, capacity: int) -> tuple[int, int]:
    """Rows and positions of the pass that serves ``rows`` sequences of at most ``filled`` tokens: powers of four up to
    ``slots``, of two up to ``capacity``. With fewer sizes more is computed than is needed, more take longer to record.
    """
    bits = (rows - 1).bit_length()
    return min(slots, 1 << bits + bits % 2), min(capacity, max(LEAST, 1 << (filled - 1).bit_length()))


class Steps:
    """``forward`` maps ids, slots and positions (int64 [3, rows]) and how far to look back to logits fp32 [rows,
    vocab]; with ``record`` it is played back from graphs. ``slots`` is the number of the spare one, too."""

    def __init__(
        self, forward: Callable[[Tensor, int], Tensor], slots: int, device: torch.device, record: bool
    ) -> None:
        self.forward, self.slots, self.device, self.record = forward, slots, device, record
        self.pool = torch.cuda.graph_pool_handle() if record else None
        self.known: dict[tuple[int, int], _Graph] = {}

    def forget(self) -> None:
        """Weights, keys or values lie elsewhere now."""
        self.known.clear()

    def __call__(self, ids: np.ndarray, slots: np.ndarray, starts: np.ndarray, capacity: int) -> Tensor:
        """Logits fp32 [pieces, vocab] after ``ids`` are read into ``slots`` at ``starts`` (int64 [pieces] each); they
        are good until the next call."""
        size = rows, filled = sizes(len(ids), int(starts.max()) + 1, self.slots, capacity)
        given = np.zeros((3, rows), np.int64)
        given[1] = self.slots
        given[:, : len(ids)] = ids, slots, starts
        if not self.record:
            return self.forward(torch.from_numpy(given).to(self.device), filled)[: len(ids)]
        if size not in self.known:
            self.known[size] = self._record(torch.from_numpy(given).to(self.device), filled)
        own = self.known[size]
        own.given.copy_(torch.from_numpy(given))
        own.graph.replay()
        return own.logits[: len(ids)]

    def _record(self, given: Tensor, filled: int) -> _Graph:
        # once without recording: libraries allocate at their first call
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.forward(given, filled)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads (a checkpoint being written, a loader that pins memory) may go on meanwhile
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            logits = self.forward(given, filled)
        return _Graph(graph, given, logits)
