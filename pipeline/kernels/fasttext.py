"""Prediction by a compressed, supervised fastText model (.ftz) without the library: the same labels and probabilities
in a third of the time.

Joulin et al., arXiv 1607.01759 and 1612.03651. A text's vector is the mean of the vectors of its known words and of the
n-grams of characters in ``<word>``, which share buckets by a 32-bit FNV-1a hash; a binary tree of labels (hierarchical
softmax) is then searched from its root for the likeliest. The library makes a string of each n-gram and decodes its
vector from the product quantizer; here hashes roll, and vectors are decoded once. Sums are of 32-bit floats in the
library's order, so that the results are equal, not alike.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numba import njit

_MAGIC, _VERSION = 793712314, 12
_HIERARCHICAL_SOFTMAX, _SUPERVISED = 1, 3
_LABEL, _END = b"__label__", b"</s>"
_SMALL = 1e-5
"""What the library adds to a probability before it takes the logarithm."""
_FNV, _FNV_PRIME = 2166136261, 16777619


class FastText:
    """A model of hierarchical softmax over words and n-grams of characters, quantized and pruned. ValueError for any
    other kind of model."""

    def __init__(self, path: Path) -> None:
        file = _File(path.read_bytes())
        if file.take("2i") != (_MAGIC, _VERSION):
            raise ValueError(f"{path} is no fastText model of version {_VERSION}")
        dim, _, _, _, _, word_ngrams, loss, kind, bucket, least, most, _ = file.take("12i")
        file.take("d")
        if (loss, kind, word_ngrams) != (_HIERARCHICAL_SOFTMAX, _SUPERVISED, 1):
            raise ValueError(f"{path} is not a classifier by hierarchical softmax without n-grams of words")
        words, counts, pruned = self._dictionary(file, bucket)
        if not file.take("?")[0]:
            raise ValueError(f"{path} is not quantized")
        vectors = _quantized(file)
        if file.take("?")[0]:
            raise ValueError(f"{path} has a quantized output layer")
        outputs = file.array(np.float32, math.prod(file.take("2q"))).reshape(-1, dim)
        # a quarter full at most
        table = np.full(1 << (4 * len(words)).bit_length(), -1, np.int32)
        text, places = _joined(words)
        _index(text, places, table)
        marks = words.index(_END), np.frombuffer(_LABEL, np.uint8)
        self._words = (text, places, table, pruned, least, most, *marks)
        self._layers = (vectors, outputs, _tree(counts))

    def _dictionary(self, file: _File, bucket: int) -> tuple[list[bytes], list[int], np.ndarray]:
        """(words, how often each label came, the row of each bucket's vector or -1); sets the labels' names."""
        size, n_words, _, _, n_pruned = file.take("3i2q")
        entries = [(file.string(), file.take("qb")[0]) for _ in range(size)]
        self.labels = [name.removeprefix(_LABEL).decode() for name, _ in entries[n_words:]]
        pairs = file.array(np.int32, 2 * n_pruned).reshape(-1, 2)
        rows = np.full(bucket, -1, np.int32)
        rows[pairs[:, 0]] = n_words + pairs[:, 1]
        return [name for name, _ in entries[:n_words]], [count for _, count in entries[n_words:]], rows

    def predict(self, text: str, k: int) -> list[tuple[str, float]]:
        """The `k` likeliest labels and their probabilities, the likeliest first. The text is one line: what follows a
        line break is not seen."""
        labels, scores = np.zeros(k, np.int64), np.zeros(k, np.float32)
        found = _predict(np.frombuffer(text.encode() + b"\n", np.uint8), self._words, self._layers, labels, scores)
        return [
            (self.labels[label], score)
            for label, score in zip(labels[:found].tolist(), scores[:found].tolist(), strict=True)
        ]


class _File:
    """Little-endian values one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple:
        form = "<" + form
        self.at += struct.calcsize(form)
        return struct.unpack_from(form, self.data, self.at - struct.calcsize(form))

    def array(self, dtype: type, count: int) -> np.ndarray:
        self.at += count * np.dtype(dtype).itemsize
        return np.frombuffer(self.data, dtype, count, self.at - count * np.dtype(dtype).itemsize)

    def string(self) -> bytes:
        start, self.at = self.at, self.data.index(b"\0", self.at) + 1
        return self.data[start : self.at - 1]


def _quantized(file: _File) -> np.ndarray:
    """The vectors of a quantized matrix, decoded: float32 [rows, dim]. Codes choose sub-vectors, and one more code a
    vector's length."""
    has_norms, rows, dim, codes = file.take("?2qi")
    code = file.array(np.uint8, codes).reshape(rows, -1)
    decoded = _centroids(file)[np.arange(code.shape[1]), code].reshape(rows, -1)[:, :dim]
    if has_norms:
        norms = file.array(np.uint8, rows)
        decoded = decoded * _centroids(file)[0, norms]
    return np.ascontiguousarray(decoded)


def _centroids(file: _File) -> np.ndarray:
    """float32 [parts, 256, width]; ValueError when the last part is narrower."""
    dim, parts, width, last = file.take("4i")
    if last != width:
        raise ValueError("a product quantizer with a last part of its own width is not read")
    return file.array(np.float32, 256 * dim).reshape(parts, 256, width)


def _joined(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(words), np.uint8), np.cumsum([0, *map(len, words)])


def _tree(counts: list[int]) -> np.ndarray:
    """int32 [nodes, 2]: the children of each node of the Huffman tree of the labels, -1 for leaves, which are the
    first; the root is the last."""
    leaves = len(counts)
    # inner nodes weigh more than all labels until they are made
    weight = counts + [10**15] * (leaves - 1)
    children = np.full((2 * leaves - 1, 2), -1, np.int32)
    leaf, node = leaves - 1, leaves  # labels are sorted by count, the most frequent first
    for parent in range(leaves, 2 * leaves - 1):
        for side in (0, 1):
            if leaf >= 0 and weight[leaf] < weight[node]:
                children[parent, side], leaf = leaf, leaf - 1
            else:
                children[parent, side], node = node, node + 1
        weight[parent] = weight[children[parent, 0]] + weight[children[parent, 1]]
    return children


@njit(cache=True, nogil=True)
def _hash(current, byte):
    """FNV-1a with one more byte, which counts as signed."""
    return np.uint32((current ^ np.uint32(np.int8(byte))) * np.uint32(_FNV_PRIME))


@njit(cache=True, nogil=True)
def _slot(data, start, end, text, places, table):
    """Where the word ``data[start:end]`` stands in the table, or the empty place for it."""
    code = np.uint32(_FNV)
    for p in range(start, end):
        code = _hash(code, data[p])
    slot = np.int64(code) & (table.size - 1)
    while table[slot] >= 0:
        first, same = places[table[slot]], places[table[slot] + 1] - places[table[slot]] == end - start
        p = start
        while same and p < end:
            same = data[p] == text[first + p - start]
            p += 1
        if same:
            break
        slot = (slot + 1) & (table.size - 1)
    return slot


@njit(cache=True, nogil=True)
def _index(text, places, table):
    for i in range(places.size - 1):
        table[_slot(text, places[i], places[i + 1], text, places, table)] = i


@njit(cache=True, nogil=True)
def _is_break(byte):
    return byte == 32 or (byte >= 9 and byte <= 13) or byte == 0


@njit(cache=True, nogil=True)
def _ngrams(word, size, buckets, least, most, found, count):
    """Note the rows of the n-grams of characters in ``word[:size]``, which has its angle brackets; returns how many
    rows there are now."""
    # n-grams begin at characters, so not at continuation bytes
    for start in range(size):
        if word[start] & 0xC0 == 0x80:
            continue
        code, p, n = np.uint32(_FNV), start, 0
        while p < size and n < most:
            code = _hash(code, word[p])
            p += 1
            while p < size and word[p] & 0xC0 == 0x80:
                code = _hash(code, word[p])
                p += 1
            n += 1
            # an angle bracket alone is no n-gram
            if n >= least and not (n == 1 and (start == 0 or p == size)):
                found[count] = buckets[code % np.uint32(buckets.size)]
                count += found[count] >= 0
    return count


@njit(cache=True, nogil=True)
def _rows(text, words):
    """int32: the rows of a line's words and n-grams, in order."""
    names, places, table, buckets, least, most, line_end, label = words
    found = np.empty((most + 1) * (text.size + 2), np.int32)
    word = np.empty(text.size + 2, np.uint8)
    word[0] = 60
    count = end = 0
    while end < text.size:
        start = end
        while start < text.size and text[start] != 10 and _is_break(text[start]):
            start += 1
        end, size, labelled = start, 1, 0
        while end < text.size and not _is_break(text[end]):
            word[size] = text[end]
            labelled += size <= label.size and word[size] == label[size - 1]
            end, size = end + 1, size + 1
        # the library takes such a word for a label, in a text to predict too
        if labelled == label.size:
            continue
        word[size] = 62
        # a line ends with a word of its own
        known = line_end if end == start else table[_slot(text, start, end, names, places, table)]
        found[count] = known
        count += known >= 0
        if known == line_end:  # is a word too
            break
        count = _ngrams(word, size + 1, buckets, least, most, found, count)
    return found[:count]


@njit(cache=True, nogil=True)
def _mean(rows, vectors):
    """float32 [dim], summed in order."""
    total = np.zeros(vectors.shape[1], np.float32)
    for row in rows:
        for d in range(total.size):
            total[d] += vectors[row, d]
    total *= np.float32(1 / rows.size)
    return total


@njit(cache=True, nogil=True)
def _log(x):
    return np.float32(math.log(np.float64(np.float32(x)) + _SMALL))


@njit(cache=True, nogil=True)
def _predict(text, words, layers, labels, scores):
    """Fill in the likeliest labels and the logarithms of their probabilities, both [k], in order; returns how many
    there are."""
    vectors, outputs, children = layers
    mean = _mean(_rows(text, words), vectors)
    found, leaves = 0, outputs.shape[0]
    nodes, sums = np.empty(leaves + 1, np.int64), np.empty(leaves + 1, np.float32)
    nodes[0], sums[0], top = children.shape[0] - 1, np.float32(0), 1
    while top > 0:
        top -= 1
        node, score = nodes[top], sums[top]
        # nothing below this node can get among the k likeliest: a product of probabilities only falls
        if score < _log(0) or (found == scores.size and score < scores[found - 1]):
            continue
        if children[node, 0] < 0:
            # a leaf: insert it by its score
            found = min(found + 1, scores.size)
            at = found - 1
            while at > 0 and scores[at - 1] < score:
                scores[at], labels[at] = scores[at - 1], labels[at - 1]
                at -= 1
            scores[at], labels[at] = score, node
            continue
        # an inner node: the logistic function of its vector times the text's
        f = np.float32(0)
        for d in range(mean.size):
            f += outputs[node - leaves, d] * mean[d]
        f = np.float32(1.0 / np.float64(np.float32(1) + np.float32(math.exp(-f))))
        nodes[top], sums[top] = children[node, 1], score + _log(f)  # the left one is taken first
        nodes[top + 1], sums[top + 1] = children[node, 0], score + _log(np.float64(1) - np.float64(f))
        top += 2
    for i in range(found):
        scores[i] = math.exp(scores[i])
    return found
