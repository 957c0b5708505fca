"""MinHash signatures, similarity of shingle sets, and union-find, over whole batches.

The signatures are those of datasketch 2's ``affine32`` scheme bit for bit: the shingle hash is mixed once by
MurmurHash3's finalizer, then permutation k is ``a[k] * h + b[k]`` in wrapping uint32, and the signature holds each
permutation's minimum. The inner loop over permutations is what the compiler turns into vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit


def permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(a, b), uint32 [count]: the permutations that datasketch draws for this seed."""
    from datasketch import MinHash

    a, b = np.asarray(MinHash(num_perm=count, seed=seed, scheme="affine32").permutations)
    return np.ascontiguousarray(a, np.uint32).reshape(-1), np.ascontiguousarray(b, np.uint32).reshape(-1)


@njit(cache=True, nogil=True)
def signatures(shingles, offsets, a, b):
    """uint32 [texts, permutations] from uint32 shingle hashes; all ones for a text without shingles, as in
    datasketch."""
    texts = offsets.size - 1
    out = np.empty((texts, a.size), np.uint32)
    least = np.empty(a.size, np.uint32)
    for i in range(texts):
        least[:] = np.uint32(0xFFFFFFFF)
        for j in range(offsets[i], offsets[i + 1]):
            h = shingles[j]
            # MurmurHash3's finalizer; every step is cast, or numba would widen to 64 bits
            h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
            h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
            h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
            # the loop that is vectorised: no branch, one uint32 multiply and add
            for k in range(a.size):
                value = np.uint32(np.uint32(a[k] * h) + b[k])
                least[k] = min(least[k], value)
        for k in range(a.size):  # assigned as a whole it would take two seconds more to compile
            out[i, k] = least[k]
    return out


@njit(cache=True, nogil=True)
def agreement(left, right, pairs):
    """Share of equal signature values, the MinHash estimate of Jaccard: float32 [pairs] for int64 pairs [m, 2] of row
    numbers."""
    out = np.empty(pairs.shape[0], np.float32)
    for p in range(pairs.shape[0]):
        x, y = left[pairs[p, 0]], right[pairs[p, 1]]
        same = 0
        for k in range(x.size):
            same += x[k] == y[k]
        out[p] = same / x.size
    return out


@njit(cache=True, nogil=True)
def jaccard(sets, offsets, pairs):
    """True Jaccard similarity of sorted, unique hash sets: float32 [m] for int64 pairs [m, 2]; two empty sets are
    unlike."""
    out = np.zeros(pairs.shape[0], np.float32)
    for p in range(pairs.shape[0]):
        i, i_end = offsets[pairs[p, 0]], offsets[pairs[p, 0] + 1]
        j, j_end = offsets[pairs[p, 1]], offsets[pairs[p, 1] + 1]
        union = (i_end - i) + (j_end - j)
        common = 0
        while i < i_end and j < j_end:
            x, y = sets[i], sets[j]
            # a merge of sorted sets without branches: both go on where they are equal
            common += x == y
            i += x <= y
            j += y <= x
        if union > 0:
            out[p] = common / (union - common)
    return out


@njit(cache=True, nogil=True)
def group_pairs(keys, everyone, recent):
    """Candidate pairs among rows of equal key, keys sorted: int64 [m, 2] positions, the smaller first.

    In a group of up to `everyone` rows all pairs; in larger ones each row with the first and with the `recent` rows
    before it, so that a page copied a million times costs a million pairs and not their square.
    """
    pairs = np.empty((0, 2), np.int64)
    for fill in range(2):  # count, then write
        count = 0
        start = 0
        for j in range(keys.size):
            if j > 0 and keys[j] != keys[j - 1]:
                start = j
            # a large group: only the rows shortly before, and below the first of the group
            near = max(start, j - recent)
            if j - start < everyone:
                near = start
            if near > start:
                if fill:
                    pairs[count, 0], pairs[count, 1] = start, j
                count += 1
            for i in range(near, j):
                if fill:
                    pairs[count, 0], pairs[count, 1] = i, j
                count += 1
        if not fill:
            pairs = np.empty((count, 2), np.int64)
    return pairs


@njit(cache=True, nogil=True)
def components(count, pairs):
    """Union-find with path halving: int64 [count], the smallest member of each one's connected component."""
    parent = np.arange(count)
    for p in range(pairs.shape[0]):
        a, b = pairs[p, 0], pairs[p, 1]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        # the smaller root wins, so a component is named by its smallest member
        if a < b:
            parent[b] = a
        else:
            parent[a] = b
    for i in range(count):
        # parents are smaller, and have been shortened before
        parent[i] = parent[parent[i]]
    return parent


@njit(cache=True, nogil=True)
def choose(starts, neighbours, order):
    """Which nodes of a graph to keep: int64 [nodes], -1 for a kept node, otherwise the kept neighbour that it is a copy
    of.

    Nodes are asked in `order`; one that no kept neighbour has claimed is kept and claims its neighbours. So each
    dropped node has a verified copy among the kept, which a whole connected component (a chain of small edits) does not
    promise. starts, neighbours: the adjacency lists, int64 [nodes + 1] and int64 [edges].
    """
    copy_of = np.full(order.size, -1, np.int64)
    for node in order:
        if copy_of[node] < 0:
            for e in range(starts[node], starts[node + 1]):
                if copy_of[neighbours[e]] < 0 and neighbours[e] != node:
                    copy_of[neighbours[e]] = node
    return copy_of
