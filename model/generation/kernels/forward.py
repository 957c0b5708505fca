"""The decoder's pass over tokens of many sequences, for generation on a CPU: one compiled function from embeddings to
the last hidden states.

Every thread of a pass runs the same function with its own ``rank``: it takes its share of columns or rows, and all meet
at a barrier wherever one needs what the others made. A token's numbers depend on its own sequence alone and on no
share, so they are the same to the bit for any batch, chunk and number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from model.generation.kernels.matrices import FP32, panel_bytes, product, ready
from model.generation.kernels.tiles import NO, PANEL, YES, ZERO, bits_to_float, count_up, give_way, multiply

QUERIES = 16
"""Tokens of a piece whose attention is computed together."""
_SPINS = 2000
_REORDERED = {"reassoc", "contract", "nsz"}  # sums of one length are still added in one order


@njit(cache=True, nogil=True, inline="always")
def exp(x):
    """e to the x in fp32, within 2 units in the last place; a polynomial that turns into vector instructions (as in
    Cephes). Not for functions that may reorder sums: its constants would be folded."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * bits_to_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(cache=True, nogil=True)
def forward(x, rows, pieces, shape, eps, scale, w, places, norms, rope, keys, values, work, meeting, rank, ranks):
    """Hidden states after the last layer, in place of the embeddings ``x`` fp32 [n, pad(dim)].

    ``rows`` int64 [n, 2]: slot and position of each token. ``pieces`` int64 [pieces, 2]: where the tokens of each
    begin in ``x`` and how many they are. ``shape`` int64: see :class:`~model.generation.packed.Packed`. ``w`` uint8
    holds the matrices, ``places`` int64 [layers, ...] where each begins. ``norms`` fp32 [layers, 4, ...]. ``rope`` fp32
    [2, capacity, head]. ``keys`` [layers, slots, kv, blocks, head, PANEL] and ``values`` [layers, slots, kv, columns,
    capacity, PANEL] take the new tokens. ``work`` is a tuple of scratch arrays.
    """
    dim, heads, kv, head, ffn, experts = shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]
    form = shape[8], shape[9]
    h, qkv, inner, mixed, gathered, scores, counts, codes, steps = work
    spare = codes[rank], steps[rank]
    n, wide = x.shape[0], x.shape[1]
    flat_x, flat_h, flat_qkv, flat_inner = x.reshape(-1), h.reshape(-1), qkv.reshape(-1), inner.reshape(-1)
    begin, end = _share(n, rank, ranks)
    for layer in range(places.shape[0]):
        place = places[layer]
        _norm(x, h, begin, end, norms[layer, 0], dim, eps)
        _meet(meeting, ranks)
        _linear(form, spare, flat_h, wide, n, w, place[0], dim, flat_qkv, qkv.shape[1], NO, rank, ranks)
        _meet(meeting, ranks)
        for row in range(begin, end):
            _place(qkv[row], rows[row], layer, heads, kv, head, norms[layer], shape[6], eps, rope, keys, values)
        _meet(meeting, ranks)
        _attend(pieces, rows, layer, heads, kv, head, scale, qkv, keys, values, mixed, scores[rank], rank, ranks)
        _meet(meeting, ranks)
        _linear(form, spare, mixed.reshape(-1), heads * head, n, w, place[1], heads * head, flat_x, wide, YES, rank,
                ranks)  # fmt: skip
        _meet(meeting, ranks)
        _norm(x, h, begin, end, norms[layer, 1], dim, eps)
        _meet(meeting, ranks)
        if experts:
            _mixture(form, spare, x, h, shape, w, place, qkv, inner, gathered, scores[rank], counts, meeting, rank,
                     ranks)  # fmt: skip
        else:
            _gated(form, spare, flat_h, wide, n, w, place[2], dim, flat_inner, inner.shape[1], ffn, scores[rank], rank,
                   ranks)  # fmt: skip
            _meet(meeting, ranks)
            _linear(form, spare, flat_inner, inner.shape[1], n, w, place[3], ffn, flat_x, wide, YES, rank, ranks)
        _meet(meeting, ranks)


@njit(cache=True, nogil=True)
def logits(x, wanted, norm, dim, eps, kind, w, place, h, out, work, meeting, rank, ranks):
    """Final norm and output matrix, whose form is ``kind``: ``out`` fp32 [wanted, pad(vocab)] of the rows ``wanted``
    int64 of ``x``."""
    begin, end = _share(len(wanted), rank, ranks)
    for i in range(begin, end):
        for j in range(h.shape[1]):
            h[i, j] = x[wanted[i], j]
    _norm(h, h, begin, end, norm, dim, eps)
    _meet(meeting, ranks)
    flat = h.reshape(-1)
    form, spare = (kind, np.int64(0)), (work[7][rank], work[8][rank])
    _linear(form, spare, flat, h.shape[1], len(wanted), w, place, dim, out.reshape(-1), out.shape[1], NO, rank, ranks)
    _meet(meeting, ranks)


@njit(cache=True, nogil=True)
def _meet(meeting, ranks):
    """Wait until all threads are here."""
    if ranks == 1:
        return
    goal = (count_up(meeting, np.int64(1)) // ranks + 1) * ranks
    spins = 0
    while count_up(meeting, np.int64(0)) < goal:
        spins += 1
        if spins > _SPINS:
            give_way()


@njit(cache=True, nogil=True)
def _share(n, rank, ranks):
    return n * rank // ranks, n * (rank + 1) // ranks


@njit(cache=True, nogil=True)
def _linear(form, spare, x, x_stride, n, w, start, k, out, out_stride, add, rank, ranks):
    """This rank's columns of ``out`` [n, ...] from ``x`` [n, k]. ``form``: the matrix' kind and group; ``spare``: this
    rank's scratch for the codes and steps of rows."""
    begin, end = _share(out_stride // PANEL, rank, ranks)
    own = start + begin * panel_bytes(form[0], form[1], k)
    ready(form[0], x, ZERO, x_stride, n, k, spare[0], spare[1])
    product(form[0], form[1], x, ZERO, x_stride, spare[0], spare[1], ZERO, n, w, own, k, out, begin * PANEL,
            out_stride, add, end - begin)  # fmt: skip


@njit(cache=True, nogil=True, fastmath=_REORDERED)
def _norm(x, out, begin, end, weight, dim, eps):
    for row in range(begin, end):
        total = np.float32(0)
        for i in range(dim):
            total += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(total / np.float32(dim) + eps)
        for i in range(dim):
            out[row, i] = x[row, i] * factor * weight[i]


@njit(cache=True, nogil=True, fastmath=_REORDERED)
def _place(line, row, layer, heads, kv, head, norms, normed, eps, rope, keys, values):
    """Norm and rotate one token's queries in place and its keys; put keys and values into their slot."""
    slot, at = row[0], row[1]
    # queries, then keys: norm and rotary embedding in place
    half = head // 2
    for part in range(heads + kv):
        own = line[part * head : (part + 1) * head]
        if normed:
            weight = norms[2] if part < heads else norms[3]
            total = np.float32(0)
            for i in range(head):
                total += own[i] * own[i]
            factor = np.float32(1) / np.sqrt(total / np.float32(head) + eps)
            for i in range(head):
                own[i] = own[i] * factor * weight[i]
        for i in range(half):
            a, b = own[i], own[i + half]
            own[i] = a * rope[0, at, i] - b * rope[1, at, i]
            own[i + half] = b * rope[0, at, i + half] + a * rope[1, at, i + half]
    block, lane = at // PANEL, at % PANEL
    for g in range(kv):
        key, value = line[(heads + g) * head :], line[(heads + kv + g) * head :]
        for i in range(head):
            keys[layer, slot, g, block, i, lane] = key[i]
        for i in range(head):
            values[layer, slot, g, i // PANEL, at, i % PANEL] = value[i]


@njit(cache=True, nogil=True)
def _attend(pieces, rows, layer, heads, kv, head, scale, qkv, keys, values, mixed, work, rank, ranks):
    """Attention of all tokens; the ranks share (group of queries, key head)."""
    group, capacity = heads // kv, values.shape[4]
    columns = values.shape[3]
    flat_keys, flat_values = keys.reshape(-1), values.reshape(-1)
    queries = work[: QUERIES * group * head]
    result = work[QUERIES * group * head :][: QUERIES * group * columns * PANEL]
    weights = work[QUERIES * group * (head + columns * PANEL) :]
    turn = 0
    for piece in range(pieces.shape[0]):
        first, count = pieces[piece, 0], pieces[piece, 1]
        slot = rows[first, 0]
        for begin in range(first, first + count, QUERIES):
            own = min(QUERIES, first + count - begin)
            seen = rows[begin + own - 1, 1] + 1  # tokens that the last one sees
            blocks = (seen + PANEL - 1) // PANEL
            for g in range(kv):
                turn += 1
                if turn % ranks != rank:
                    continue
                at = ((layer * keys.shape[1] + slot) * kv + g) * capacity
                # queries [own * group, head], scaled
                for t in range(own):
                    for i in range(group * head):
                        queries[t * group * head + i] = qkv[begin + t, g * group * head + i] * scale
                lines, stride = own * group, blocks * PANEL
                # scores [own * group, positions] = queries x keys
                multiply(
                    queries, ZERO, head, lines, flat_keys, at * head, head * PANEL, head, weights, ZERO, stride, NO,
                    blocks,
                )  # fmt: skip
                for line in range(lines):
                    _softmax(weights[line * stride : (line + 1) * stride], rows[begin + line // group, 1] + 1)
                # result [own * group, head] = weights x values
                multiply(
                    weights, ZERO, stride, lines, flat_values, at * columns * PANEL, capacity * PANEL, seen,
                    result, ZERO, columns * PANEL, NO, columns,
                )  # fmt: skip
                for t in range(own):
                    for j in range(group):
                        for i in range(head):
                            mixed[begin + t, (g * group + j) * head + i] = result[(t * group + j) * columns * PANEL + i]


@njit(cache=True, nogil=True)
def _softmax(line, count):
    """Softmax over the first ``count`` numbers; 0 after them."""
    highest = peak(line, count)
    for i in range(count):
        line[i] = exp(line[i] - highest)
    factor = np.float32(1) / _sum(line, count)
    for i in range(count):
        line[i] *= factor
    for i in range(count, len(line)):
        line[i] = np.float32(0)


@njit(cache=True, nogil=True, fastmath={"reassoc", "nnan", "nsz"})
def peak(line, count):
    """The largest of the first ``count`` numbers."""
    highest = line[0]
    for i in range(1, count):
        highest = max(highest, line[i])
    return highest


@njit(cache=True, nogil=True, fastmath=_REORDERED)
def _sum(line, count):
    total = np.float32(0)
    for i in range(count):
        total += line[i]
    return total


@njit(cache=True, nogil=True)
def _gated(form, spare, x, x_stride, n, w, start, k, out, out_stride, width, work, rank, ranks):
    """SwiGLU's hidden layer: panels of gate and up stand side by side, so a rank needs none of another's."""
    begin, end = _share((width + PANEL - 1) // PANEL, rank, ranks)
    both = 2 * panel_bytes(form[0], form[1], k)
    ready(form[0], x, ZERO, x_stride, n, k, spare[0], spare[1])
    for p in range(begin, end):
        for row in range(0, n, QUERIES):
            own = min(QUERIES, n - row)
            product(form[0], form[1], x, row * x_stride, x_stride, spare[0], spare[1], row, own, w, start + p * both, k,
                    work, ZERO, np.int64(2 * PANEL), NO, np.int64(2))  # fmt: skip
            for r in range(own):
                _swish(work[2 * r * PANEL :], out[(row + r) * out_stride + p * PANEL :])


@njit(cache=True, nogil=True, error_model="numpy")  # a check for a division by 0 would keep it off vectors
def _swish(both, out):
    for i in range(PANEL):
        out[i] = both[i] / (np.float32(1) + exp(-both[i])) * both[PANEL + i]


@njit(cache=True, nogil=True)
def _mixture(form, spare, x, h, shape, w, place, chosen, inner, gathered, work, counts, meeting, rank, ranks):
    """A mixture of experts: ``x`` gets added what each token's experts make of ``h``. ``place``: gate and up, then down
    of each expert from index 3 on, the router's (fp32 always) at 2."""
    dim, experts, top, width = shape[0], shape[5], shape[7], shape[4]
    n, wide = h.shape
    # counts [1 + experts]: where each expert's copies begin; then for each copy its token; then each token's copies
    tokens, own = counts[experts + 1 :], counts[experts + 1 + n * top :]
    share = work[: ((experts + PANEL - 1) // PANEL) * PANEL]
    if rank == 0:
        # route: each token's experts and their weights
        for row in range(n):
            product(np.int64(FP32), ZERO, h.reshape(-1), row * wide, wide, spare[0], spare[1], ZERO, np.int64(1), w,
                    place[2], dim, share, ZERO, len(share), NO, len(share) // PANEL)  # fmt: skip
            _route(share, experts, top, chosen[row])
        for e in range(experts + 1):
            counts[e] = 0
        # count the copies of each expert, and where they begin
        for row in range(n):
            for t in range(top):
                counts[np.int64(chosen[row, t]) + 1] += 1
        for e in range(experts):
            counts[e + 1] += counts[e]
        copies = 0
        for e in range(experts):
            for row in range(n):
                for t in range(top):
                    if np.int64(chosen[row, t]) == e:
                        tokens[copies] = row
                        own[row * top + t] = copies
                        copies += 1
    _meet(meeting, ranks)
    # gather: the rows of an expert lie side by side, in the order of their tokens
    begin, end = _share(n * top, rank, ranks)
    for copy in range(begin, end):
        for i in range(dim):
            gathered[copy, i] = h[tokens[copy], i]
    _meet(meeting, ranks)
    flat, hidden = gathered.reshape(-1), inner.reshape(-1)
    for e in range(experts):
        first, count = counts[e], counts[e + 1] - counts[e]
        if count:
            _gated(form, spare, flat[first * gathered.shape[1] :], gathered.shape[1], count, w, place[3 + 2 * e], dim,
                   hidden[first * inner.shape[1] :], inner.shape[1], width, work, rank, ranks)  # fmt: skip
    _meet(meeting, ranks)
    for e in range(experts):
        first, count = counts[e], counts[e + 1] - counts[e]
        if count:
            _linear(form, spare, hidden[first * inner.shape[1] :], inner.shape[1], count, w, place[4 + 2 * e], width,
                    flat[first * gathered.shape[1] :], gathered.shape[1], NO, rank, ranks)  # fmt: skip
    _meet(meeting, ranks)
    # weighted sum of a token's experts, always in the same order
    begin, end = _share(n, rank, ranks)
    for row in range(begin, end):
        for t in range(top):
            for i in range(dim):
                x[row, i] += gathered[own[row * top + t], i] * chosen[row, top + t]


@njit(cache=True, nogil=True)
def _route(share, experts, top, out):
    """The ``top`` likeliest experts, lower numbers first, and their weights after them, which sum to 1."""
    highest = share[:experts].max()
    total = np.float32(0)
    for t in range(top):
        best = 0
        for e in range(experts):
            if share[e] > share[best]:
                best = e
        out[t], out[top + t] = best, np.exp(share[best] - highest)
        total += out[top + t]
        share[best] = -np.inf
    for t in range(top):
        out[top + t] /= total
