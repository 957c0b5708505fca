"""The next token of each sequence from its logits, compiled: no sort of the vocabulary, and nothing but a sum where
nothing is cut. The meaning is that of :mod:`model.generation.choose`."""

from __future__ import annotations

import numpy as np
from numba import njit

from model.generation.kernels.forward import exp, peak
from model.generation.kernels.tiles import ZERO


def room(vocab: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scratch for a vocabulary. (Not made in the compiled function: numba takes seconds for what makes arrays.)"""
    return np.zeros(vocab, np.uint8), np.zeros(vocab, np.int32), np.empty(vocab, np.float32), np.empty(vocab, np.int64)


@njit(cache=True, nogil=True)
def pick(logits, vocab, knobs, uniform, history, spans, tokens, logprobs, scratch):
    """``tokens`` int64 [rows] and ``logprobs`` fp64 [rows]; the first row whose logits are not finite, or -1.

    ``logits`` fp32 [rows, >= vocab] is scratch afterwards. ``knobs`` fp64 [rows, 7]: temperature, top_k, top_p, min_p,
    repetition, presence and frequency penalty. ``history`` int32 [slots, capacity] holds what sequences have read and
    said, ``spans`` int64 [rows, 3] each row's slot, the length of its prompt and of all. ``scratch``: see
    :func:`room`.
    """
    seen, said, weights, heap = scratch
    for row in range(len(tokens)):
        line = logits[row, :vocab]
        temperature = np.float32(knobs[row, 0])
        # penalties, on logits
        if knobs[row, 4] != 1 or knobs[row, 5] != 0 or knobs[row, 6] != 0:
            _penalise(line, knobs[row], history[spans[row, 0]], spans[row, 1], spans[row, 2], seen, said)
        if not np.isfinite(_sum(line, vocab)):
            return row
        # softmax numerators, the largest being 1
        highest = peak(line, vocab)
        for i in range(vocab):
            # in this order a small temperature makes no number too large
            line[i] = (line[i] - highest) / (temperature if temperature else np.float32(1))
            weights[i] = exp(line[i]) if line[i] > np.float32(-87) else np.float32(0)  # what is forbidden is nothing
        total = _sum(weights, vocab)
        # greedy: the first of the highest
        if temperature == 0:
            chosen = 0
            while line[chosen] != 0:
                chosen += 1
        else:
            # top-k, top-p, min-p, each on what the one before left
            if 0 < knobs[row, 1] < vocab:
                _keep_top(weights, heap, vocab, np.int64(knobs[row, 1]), np.inf)
                total = _sum(weights, vocab)
            if knobs[row, 2] < 1:
                _keep_top(weights, heap, vocab, vocab, knobs[row, 2] * total)
            if knobs[row, 3] > 0:
                for i in range(vocab):
                    if weights[i] < knobs[row, 3]:
                        weights[i] = 0
            # the inverse of the cumulative distribution at the uniform number
            total = _sum(weights, vocab)
            chosen = _draw(weights, vocab, uniform[row] * total)
        tokens[row] = chosen
        logprobs[row] = np.float64(line[chosen]) - np.log(total)
    return -1


@njit(cache=True, nogil=True)
def _penalise(line, knobs, history, prompt, length, seen, said):
    repetition, presence, frequency = np.float32(knobs[4]), np.float32(knobs[5]), np.float32(knobs[6])
    for i in range(length):
        seen[history[i]] = 1
        if i >= prompt:
            said[history[i]] += 1
    # each token once, however often it was seen; marks are cleared on the way
    for i in range(length):
        token = history[i]
        if seen[token]:
            value = line[token]
            value = value / repetition if value > 0 else value * repetition
            if said[token]:
                value = value - frequency * np.float32(said[token]) - presence
            line[token] = value
            seen[token] = said[token] = 0


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _sum(weights, count):
    total = 0.0
    for i in range(count):
        total += np.float64(weights[i])
    return total


@njit(cache=True, nogil=True)
def _draw(weights, vocab, point):
    """The first token at which the sum of the weights exceeds ``point``; where rounding leaves none, the last one that
    may come."""
    total, last = 0.0, 0
    for i in range(vocab):
        if weights[i] > 0:
            total += weights[i]
            last = i
            if total > point:
                return i
    return last


@njit(cache=True, nogil=True)
def _keep_top(weights, heap, vocab, count, mass):
    """Weights become 0 but for the ``count`` largest, and of these the largest that have ``mass`` together; of equal
    ones the lower ids stay.

    A heap of candidates is emptied from the top. Where a number is wanted, tokens below a weight that so many have are
    no candidates; where a mass is, those so light that all of them together are less than what may be missing.
    """
    total = _sum(weights, vocab)
    light = np.float32(0)
    if mass < total:
        light = np.float32((total - mass) / vocab * 0.999999)
    elif count < vocab:
        light = _floor(weights, vocab, count)
    # candidates, and a heap of them
    size = 0
    for i in range(vocab):
        if weights[i] > 0 and weights[i] >= light:
            heap[size] = i
            size += 1
    for start in range(size // 2 - 1, -1, -1):
        _sink(weights, heap, start, size)
    # take from the top until there is enough
    taken, gone = 0.0, size
    while gone > 0 and size - gone < count and taken < mass:
        gone -= 1
        heap[0], heap[gone] = heap[gone], heap[0]
        taken += weights[heap[gone]]
        _sink(weights, heap, ZERO, gone)
    # what was taken lies in heap[gone:size], the smallest first
    if gone < size:
        last = heap[gone]
        least = weights[last]
        for i in range(vocab):
            if weights[i] < least or (weights[i] == least and i > last):
                weights[i] = 0


@njit(cache=True, nogil=True)
def _floor(weights, vocab, count):
    """A weight that at least ``count`` tokens have: the smallest of the largest of ``count`` parts of the
    vocabulary."""
    least = np.float32(np.inf)
    for part in range(count):
        most = np.float32(0)
        for i in range(vocab * part // count, vocab * (part + 1) // count):
            most = max(most, weights[i])
        least = min(least, most)
    return least


@njit(cache=True, nogil=True)
def _sink(weights, heap, at, size):
    own = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(weights, heap[child + 1], heap[child]):
            child += 1
        if not _before(weights, heap[child], own):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = own


@njit(cache=True, nogil=True, inline="always")
def _before(weights, a, b):
    return weights[a] > weights[b] or (weights[a] == weights[b] and a < b)
