"""Byte pair merges learnt from counted pre-tokens, compiled: the most frequent pair first, of equal ones the lower ids,
as `tokenizers` does.

All pre-tokens lie in one array, a cell a byte, ``_EDGE`` between them. A token's first and last cells hold its id and
the cells between hold nothing, so both neighbours are found without links. A pair comes into being only in the merge
that makes the newer of its two ids; from then on it loses places. So its places are listed once, in order, and its
count is an upper bound that is put right when the pair comes to the top of the heap: meanwhile nothing is updated.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_EDGE, _NOTHING = -1, -2
_ZERO = np.int64(0)  # a bare 0 is a type of its own to numba, and what it is passed to would be compiled twice


def learn(words: np.ndarray, offsets: np.ndarray, counts: np.ndarray, limit: int, known: int = 256) -> np.ndarray:
    """Up to `limit` merges, in order: int32 [m, 2]; merge i makes id `known` + i. Fewer when no pair is left.

    Word i is ``words[offsets[i]:offsets[i + 1]]`` (uint8, or int32 ids below `known`; offsets int64), and came
    ``counts[i]`` times (int64). Takes up to 16 bytes of memory a byte of words, and 32 a pair. Raises ValueError for
    2**31 bytes of words and more.
    """
    size = len(words) + len(counts) + 1
    if size >= 2**31:
        raise ValueError(
            f"{len(words):,} bytes of distinct pre-tokens are too many to learn merges from (the most is 2**31); take a"
            " smaller sample"
        )
    order = np.argsort(counts, kind="stable")
    weights, first = np.unique(counts[order], return_index=True)
    cells, starts = np.full(size, _EDGE, np.int32), np.empty(len(counts), np.int64)
    _lay_out(words, offsets, order, cells, starts)
    bounds = np.append(
        starts[first[1:]], size
    )  # cells from bounds[i - 1] up to bounds[i] are of words that came weights[i] times
    places = np.empty(
        3 * size, np.int32
    )  # a merge takes a cell away and gives two places at most; untouched memory costs nothing
    if known == 256:
        found, heap = np.zeros((1 << 16, 2), np.int64), np.empty((1 << 16, 4), np.int64)
        top, used = _byte_pairs(cells, bounds, weights, places, found, heap)
    else:
        heap, top, used = _id_pairs(cells, bounds, weights, places)
    merges = np.empty((limit, 2), np.int32)
    sizes = np.ones(known + limit, np.int64)  # cells of each id
    fresh = np.zeros(
        (2, known + limit, 2), np.int64
    )  # by side and neighbour: count and places of the pairs that a merge makes
    others = np.empty((2, known + limit), np.int64)  # those neighbours
    return merges[: _learn(cells, bounds, weights, places, used, heap, top, merges, known, sizes, fresh, others)]


def _id_pairs(cells, bounds, weights, places):
    """What :func:`_byte_pairs` does, for any ids, by sorting: (heap, its rows, places used)."""
    at = np.flatnonzero((cells[1:-1] != _EDGE) & (cells[2:] != _EDGE)) + 1
    pair = cells[at].astype(np.int64) << 32 | cells[at + 1]
    order = np.argsort(pair, kind="stable")
    at = places[: len(at)] = at[order]
    pairs, first, numbers = np.unique(pair[order], return_index=True, return_counts=True)
    heap = np.empty((max(len(pairs), 1), 4), np.int64)
    if len(pairs):
        came = np.add.reduceat(weights[np.searchsorted(bounds, at, side="right")], first)
        _fill(heap, came.astype(np.int64), pairs, first.astype(np.int64), numbers.astype(np.int64))
    return heap, np.int64(len(pairs)), np.int64(len(at))


@njit(cache=True, nogil=True)
def _fill(heap, counts, pairs, starts, numbers):
    for i in range(counts.size):
        _push(heap, i, counts[i], pairs[i], starts[i], numbers[i])


@njit(cache=True, nogil=True)
def _lay_out(words, offsets, order, cells, starts):
    """Fill the cells with the words in this order, and note where each begins."""
    at = 1
    for i in range(order.size):
        starts[i] = at
        for k in range(offsets[order[i]], offsets[order[i] + 1]):
            cells[at] = words[k]
            at += 1
        at += 1


@njit(cache=True, nogil=True)
def _byte_pairs(cells, bounds, weights, places, found, heap):
    """List the places of each pair of bytes, in order, and put the pairs on the heap; returns how many pairs and places
    there are."""
    run = 0
    for i in range(1, cells.size - 1):
        if cells[i] != _EDGE and cells[i + 1] != _EDGE:
            while i >= bounds[run]:
                run += 1
            pair = cells[i] << 8 | cells[i + 1]
            found[pair, 0] += weights[run]
            found[pair, 1] += 1
    top = used = _ZERO
    for pair in range(1 << 16):
        number = found[pair, 1]
        if number > 0:
            _push(heap, top, found[pair, 0], (pair >> 8) << 32 | pair & 0xFF, used, number)
            found[pair, 1] = used
            top += 1
            used += number
    for i in range(1, cells.size - 1):
        if cells[i] != _EDGE and cells[i + 1] != _EDGE:
            pair = cells[i] << 8 | cells[i + 1]
            places[found[pair, 1]] = i
            found[pair, 1] += 1
    return top, used


@njit(cache=True, nogil=True)
def _learn(cells, bounds, weights, places, used, heap, top, merges, known, sizes, fresh, others):
    """Fill the merges; returns how many there are."""
    made = 0
    while made < merges.shape[0] and top > 0:
        # the most frequent pair, if its count still holds: merges of others may have taken places from it
        claimed, pair, start, number = heap[0, 0], heap[0, 1], heap[0, 2], heap[0, 3]
        a, b = pair >> 32, pair & 0xFFFFFFFF
        count, number = _recount(cells, bounds, weights, places, start, number, a, b, sizes[a])
        if 0 < count < claimed:
            _settle(heap, top, count, pair, start, number)
            continue
        top -= 1
        _settle(heap, top, heap[top, 0], heap[top, 1], heap[top, 2], heap[top, 3])
        if count == 0:
            continue
        # a new id for the pair
        new = known + made
        merges[made, 0], merges[made, 1] = a, b
        sizes[new] = sizes[a] + sizes[b]
        made += 1
        number = _apply(cells, places, start, number, a, b, new, sizes)
        lefts, rights = _neighbours(cells, bounds, weights, places, start, number, new, sizes[new], fresh, others)
        # pairs with the new id, to the left and to the right, go on the heap
        heap = _room(heap, top + lefts + rights)
        for i in range(lefts + rights):
            side = 0 if i < lefts else 1
            other = others[side, i - side * lefts]
            pair = new << 32 | other if side else other << 32 | new
            _push(heap, top, fresh[side, other, 0], pair, used, fresh[side, other, 1])
            top += 1
            used, fresh[side, other, 0], fresh[side, other, 1] = (
                used + fresh[side, other, 1],
                0,
                used,
            )  # where its list is filled
        _list_places(cells, places, start, number, new, sizes, fresh)
    return made


@njit(cache=True, nogil=True)
def _recount(cells, bounds, weights, places, start, number, a, b, size):
    """Drop the places where the pair is no more; returns its count, and how many are left at the front of the list."""
    count = left = run = _ZERO
    for i in range(start, start + number):
        place = places[i]
        if cells[place] == a and cells[place + size] == b:
            while place >= bounds[run]:
                run += 1
            count += weights[run]
            places[start + left] = place
            left += 1
    return count, left


@njit(cache=True, nogil=True)
def _apply(cells, places, start, number, a, b, new, sizes):
    """Merge the pair wherever it is, from left to right; returns how many places were merged, which the front of the
    list then holds."""
    merged = _ZERO
    for i in range(start, start + number):
        place = places[i]
        middle = place + sizes[a]
        if cells[place] == a and cells[middle] == b:  # not so in a run of one id, after the place before
            cells[middle - 1] = cells[middle] = _NOTHING
            cells[place] = cells[middle + sizes[b] - 1] = new
            places[start + merged] = place
            merged += 1
    return merged


@njit(cache=True, nogil=True)
def _neighbours(cells, bounds, weights, places, start, number, new, size, fresh, others):
    """Add up the pairs that a merge made; returns how many ids are left neighbours and how many are right ones."""
    lefts = rights = run = _ZERO
    for i in range(start, start + number):
        place = places[i]
        while place >= bounds[run]:
            run += 1
        left, right = cells[place - 1], cells[place + size]
        if left != _EDGE and left != new:  # two new ones in a row are a pair of the first and its right neighbour
            if fresh[0, left, 0] == 0:
                fresh[0, left, 1] = 0
                others[0, lefts] = left
                lefts += 1
            fresh[0, left, 0] += weights[run]
            fresh[0, left, 1] += 1
        if right != _EDGE:
            if fresh[1, right, 0] == 0:
                fresh[1, right, 1] = 0
                others[1, rights] = right
                rights += 1
            fresh[1, right, 0] += weights[run]
            fresh[1, right, 1] += 1
    return lefts, rights


@njit(cache=True, nogil=True)
def _list_places(cells, places, start, number, new, sizes, fresh):
    """Put the places of the pairs that a merge made where their lists lie."""
    for i in range(start, start + number):
        place = places[i]
        left, right = cells[place - 1], cells[place + sizes[new]]
        if left != _EDGE and left != new:
            places[fresh[0, left, 1]] = place - sizes[left]
            fresh[0, left, 1] += 1
        if right != _EDGE:
            places[fresh[1, right, 1]] = place
            fresh[1, right, 1] += 1


@njit(cache=True, nogil=True)
def _room(heap, rows):
    """The heap, or a copy with half as much room again when it has fewer rows than needed."""
    if rows <= heap.shape[0]:
        return heap
    out = np.empty((rows + rows // 2, 4), np.int64)
    for i in range(heap.shape[0]):
        _move(heap, i, out, i)
    return out


@njit(cache=True, nogil=True)
def _push(heap, top, count, pair, start, number):
    """Put a pair on a heap of `top` rows: its count, left id << 32 | right id, where its places start and how many they
    are."""
    i = top
    while i > 0:
        up = (i - 1) >> 1
        if heap[up, 0] > count or (heap[up, 0] == count and heap[up, 1] < pair):
            break
        _move(heap, up, heap, i)
        i = up
    heap[i, 0], heap[i, 1], heap[i, 2], heap[i, 3] = count, pair, start, number


@njit(cache=True, nogil=True)
def _settle(heap, top, count, pair, start, number):
    """Put a pair on a heap of `top` rows in place of the first."""
    i = _ZERO
    while 2 * i + 1 < top:
        down = 2 * i + 1
        if down + 1 < top and (
            heap[down + 1, 0] > heap[down, 0]
            or (heap[down + 1, 0] == heap[down, 0] and heap[down + 1, 1] < heap[down, 1])
        ):
            down += 1
        if count > heap[down, 0] or (count == heap[down, 0] and pair < heap[down, 1]):
            break
        _move(heap, down, heap, i)
        i = down
    heap[i, 0], heap[i, 1], heap[i, 2], heap[i, 3] = count, pair, start, number


@njit(cache=True, nogil=True)
def _move(heap, i, out, j):
    for k in range(4):
        out[j, k] = heap[i, k]
