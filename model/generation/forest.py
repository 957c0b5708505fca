"""Likelihoods of many sequences that begin alike, each common beginning computed once.

Sequences that share a long beginning (few-shot examples, or a long question with its choices) make a grove: the
beginning, its trunk, is read once, causally, and its keys and values are kept. What differs is laid into trees: in
lexicographic order, what a sequence has in common with the one before it is there already. A tree is one row of a
batch; a token sees the trunk and its ancestors alone and counts its position from the root, so it is computed as if
its sequence stood by itself (Medusa, arXiv:2401.10774, verifies its drafts by the same mask).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.transformer import KVCache, Transformer

Scored = tuple[list[int], int]
"""Token ids, and the index of the first one whose likelihood is wanted (at least 1)."""
ROOM = 768
"""Nodes of a tree: more share more, and attention grows with their square."""
TRUNK, LONG = 64, 512
"""Tokens that a trunk must have, and that it must have or that must follow it: under that, passes of its own cost more
than they save."""
SHARE = 4
"""A sequence joins a tree when it has one token in so many there already: others only lengthen the row."""


@dataclass
class Tree:
    """Tokens with their depth; ``chains`` are runs of new nodes [begin, end) and the nodes above them, ``ends`` the
    nodes from which each sequence's wanted tokens are predicted, by the sequence's index."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    chains: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    ends: dict[int, np.ndarray] = field(default_factory=dict)

    def mask(self, size: int) -> np.ndarray:
        """Who sees whom [size, size]: a node its ancestors and itself; nodes past the tree are padding and see
        themselves."""
        seen = np.eye(size, dtype=bool)
        for begin, end, above in self.chains:
            seen[begin:end, above] = True
            seen[begin:end, begin:end] |= np.tri(end - begin, dtype=bool)
        return seen


@dataclass(frozen=True)
class Grove:
    """Sequences, by index in lexicographic order, that all begin with ``trunk`` and want nothing of it."""

    trunk: list[int]
    members: list[int]


def groves(sequences: Sequence[Scored]) -> list[Grove]:
    """All sequences in groves: runs of neighbours on a trunk that pays, and the others together in one without."""
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i][0], i))
    alike = [_before(sequences[a], sequences[b]) for a, b in pairwise(order)]
    found: list[Grove] = []
    single: list[int] = []
    begin = 0
    for at in range(1, len(order) + 1):
        if at < len(order) and alike[at - 1] >= TRUNK:
            continue
        members, trunk = order[begin:at], min(alike[begin : at - 1], default=0)
        follow = sum(len(sequences[i][0]) for i in members) - trunk - sum(alike[begin : at - 1])
        if trunk and max(trunk, follow) >= LONG:
            found.append(Grove(sequences[members[0]][0][:trunk], members))
        else:
            single += members
        begin = at
    return [*found, Grove([], single)] if single else found


def shared(sequences: Sequence[Scored]) -> float:
    """The share of the sequences' tokens that need not be computed, in one tree without a limit."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i][0])
    total = sum(len(ids) for ids, _ in sequences)
    common = sum(_common(sequences[a][0], sequences[b][0]) for a, b in pairwise(order))
    return common / total if total else 0.0


def plant(sequences: Sequence[Scored], grove: Grove | None = None, room: int = ROOM) -> Iterator[Tree]:
    """Trees of at most ``room`` nodes (one sequence alone may have more) that hold the sequences of a grove (all), past
    its trunk."""
    order = grove.members if grove else sorted(range(len(sequences)), key=lambda i: (sequences[i][0], i))
    root = len(grove.trunk) if grove else 0
    tree, path = Tree(), np.zeros(0, np.int64)
    last: list[int] = []
    for i in order:
        ids, start = sequences[i]
        read = ids[root:-1]  # the last token is predicted and never read
        common = min(_common(last, read), len(path))
        full = len(tree.tokens) + len(read) - common > room
        if tree.tokens and (full or common * SHARE < len(read)):
            yield tree
            tree, path, common = Tree(), np.zeros(0, np.int64), 0
        begin = len(tree.tokens)
        tree.tokens += read[common:]
        tree.depths += range(root + common, root + len(read))
        if len(read) > common:
            tree.chains.append((begin, len(tree.tokens), path[:common]))
        path = np.concatenate([path[:common], np.arange(begin, len(tree.tokens))])
        tree.ends[i] = path[start - 1 - root :]
        last = read
    if tree.tokens:
        yield tree


def _before(a: Scored, b: Scored) -> int:
    """How many tokens two sequences begin with alike before either predicts one that is wanted."""
    return min(_common(a[0], b[0]), a[1] - 1, b[1] - 1)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    low, high = 0, length
    while high - low > 1:  # a[:low] is alike, a[:high] is not
        middle = (low + high) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle)
    return low


class Graft(KVCache):
    """The keys and values of a trunk below those of trees: a cache that keeps nothing new."""

    def __init__(self, trunk: KVCache) -> None:
        self.keys, self.values, self.pad = trunk.keys, trunk.values, None
        self.length = self.capacity = trunk.length

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, kv_heads, trunk + new, head]: the trunk's before the new ones."""
        keys, values = (own[layer].expand(k.shape[0], -1, -1, -1) for own in (self.keys, self.values))
        return torch.cat((keys, k), 2), torch.cat((values, v), 2)


@torch.no_grad()
def read_trunk(model: Transformer, tokens: Sequence[int]) -> Graft | None:
    """The keys and values of a trunk; None of no tokens."""
    if not tokens:
        return None
    cache = model.cache(1, len(tokens))
    model.hidden(torch.tensor([list(tokens)], device=model.head.device), cache=cache)
    return Graft(cache)


@torch.no_grad()
def tree_log_probabilities(
    model: Transformer,
    trees: Sequence[Tree],
    sequences: Sequence[Scored],
    trunk: Graft | None = None,
    logits_at_once: int = 1 << 26,
) -> dict[int, np.ndarray]:
    """Natural log-probabilities (float64) of the wanted tokens of every sequence in the trees, which stand on
    ``trunk``, by its index."""
    size, device = max(len(tree.tokens) for tree in trees), model.head.device
    ids, depths = (torch.zeros((len(trees), size), dtype=torch.long) for _ in range(2))
    mask = torch.from_numpy(np.stack([tree.mask(size) for tree in trees]))[:, None]  # [trees, 1, size, size]
    if trunk:
        mask = torch.cat((mask.new_ones((len(trees), 1, size, trunk.length)), mask), 3)
    for row, tree in enumerate(trees):
        ids[row, : len(tree.tokens)] = torch.tensor(tree.tokens)
        depths[row, : len(tree.tokens)] = torch.tensor(tree.depths)
    states = _states(model, ids.to(device), depths.to(device), mask.to(device), trunk)
    wanted = [(i, row * size + nodes) for row, tree in enumerate(trees) for i, nodes in tree.ends.items()]
    return picked(model, states, wanted, sequences, logits_at_once)


def picked(
    model: Transformer,
    states: Tensor,
    wanted: Sequence[tuple[int, np.ndarray]],
    sequences: Sequence[Scored],
    logits_at_once: int = 1 << 26,
) -> dict[int, np.ndarray]:
    """The log-probabilities of sequences' wanted tokens by index: ``wanted`` says from which of the hidden states
    [rows, size, dim], counted through all rows, each is predicted. Logits of nothing else are computed."""
    nodes = np.concatenate([nodes for _, nodes in wanted])
    targets = np.concatenate([np.array(sequences[i][0][sequences[i][1] :]) for i, _ in wanted])
    at_once = max(1, logits_at_once // model.config.vocab_size)
    found = _picked(model, states.flatten(0, 1), nodes, targets, at_once)
    edges = np.cumsum([len(own) for _, own in wanted])[:-1]
    return {i: values for (i, _), values in zip(wanted, np.split(found, edges), strict=True)}


def _states(model: Transformer, ids: Tensor, depths: Tensor, mask: Tensor, trunk: Graft | None) -> Tensor:
    """Hidden states [rows, size, dim] of tokens that see what ``mask`` lets them see, at positions ``depths``."""
    x = F.embedding(ids, model.model.embed_tokens.weight).to(model.compute_dtype)
    cos, sin = model.rope(0, int(depths.max()) + 1, ids.device)
    rope = cos[depths][:, None], sin[depths][:, None]  # [rows, 1, size, head]
    for layer, block in enumerate(model.model.layers):
        x = block(x, rope, mask, layer, trunk)
    return model.model.norm(x)


def _picked(model: Transformer, states: Tensor, nodes: np.ndarray, targets: np.ndarray, at_once: int) -> np.ndarray:
    """The log-probability of each target after its node; the logits of a node are computed once for all of its
    targets."""
    unique, of = np.unique(nodes, return_inverse=True)
    found = np.empty(len(nodes), np.float64)
    for begin in range(0, len(unique), at_once):
        own = unique[begin : begin + at_once]
        some = states[torch.from_numpy(own).to(states.device)]
        logits = F.linear(some, model.head.to(some.dtype)).float()  # [nodes, vocab]
        total = torch.logsumexp(logits, -1)  # [nodes]
        here = np.flatnonzero((of >= begin) & (of < begin + len(own)))
        rows, columns = (torch.from_numpy(ids).to(logits.device) for ids in (of[here] - begin, targets[here]))
        found[here] = (logits[rows, columns] - total[rows]).double().cpu().numpy()
    return found


def batches(trees: Sequence[Tree], tokens: int, under: int = 0) -> Iterator[list[Tree]]:
    """The trees, the largest first, in batches of about ``tokens`` slots (a quarter is enough where the next ones are
    so much smaller that they would be padding), and of at most 32 times as many keys with a trunk of ``under`` tokens
    below each."""
    batch: list[Tree] = []
    for tree in sorted(trees, key=lambda tree: -len(tree.tokens)):
        size, rows = len(batch[0].tokens) if batch else 0, len(batch) + 1
        smaller = 4 * size * len(batch) >= tokens and 4 * len(tree.tokens) < 3 * size
        if batch and (smaller or size * rows > tokens or (size + under) * rows > 32 * tokens):
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch
