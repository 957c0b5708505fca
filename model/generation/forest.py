"""Likelihoods of many sequences that begin alike, each common beginning computed once.

Sequences in lexicographic order are laid into trees: what one has in common with the one before it is there already.
A tree is one row of a batch; a token sees its ancestors alone and counts its position from the root, so it is computed
as if its sequence stood by itself. So few-shot examples that all questions share are read once a row, and the choices
of a question share the question (Medusa, arXiv:2401.10774, verifies its drafts by the same mask).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.transformer import Transformer

Scored = tuple[list[int], int]
"""Token ids, and the index of the first one whose likelihood is wanted (at least 1)."""
ROOM = 768
"""Nodes of a tree: more share more, and attention grows with their square."""


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


def shared(sequences: Sequence[Scored]) -> float:
    """The share of the sequences' tokens that need not be computed, in one tree without a limit."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i][0])
    total = sum(len(ids) for ids, _ in sequences)
    common = sum(_common(sequences[a][0], sequences[b][0]) for a, b in pairwise(order))
    return common / total if total else 0.0


def plant(sequences: Sequence[Scored], room: int = ROOM) -> Iterator[Tree]:
    """Trees of at most ``room`` nodes (one sequence alone may have more) that hold all sequences."""
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i][0], i))
    tree, path = Tree(), np.zeros(0, np.int64)
    last: list[int] = []
    for i in order:
        ids, start = sequences[i]
        read = ids[:-1]  # the last token is predicted and never read
        common = min(_common(last, read), len(path))
        if tree.tokens and len(tree.tokens) + len(read) - common > room:
            yield tree
            tree, path, common = Tree(), np.zeros(0, np.int64), 0
        begin = len(tree.tokens)
        tree.tokens += read[common:]
        tree.depths += range(common, len(read))
        if len(read) > common:
            tree.chains.append((begin, len(tree.tokens), path[:common]))
        path = np.concatenate([path[:common], np.arange(begin, len(tree.tokens))])
        tree.ends[i] = path[start - 1 :]
        last = read
    if tree.tokens:
        yield tree


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


@torch.no_grad()
def tree_log_probabilities(
    model: Transformer, trees: Sequence[Tree], sequences: Sequence[Scored], logits_at_once: int = 1 << 26
) -> dict[int, np.ndarray]:
    """Natural log-probabilities (float64) of the wanted tokens of every sequence in the trees, by its index."""
    size, device = max(len(tree.tokens) for tree in trees), model.head.device
    ids, depths = (torch.zeros((len(trees), size), dtype=torch.long) for _ in range(2))
    mask = torch.from_numpy(np.stack([tree.mask(size) for tree in trees]))[:, None]  # [trees, 1, size, size]
    for row, tree in enumerate(trees):
        ids[row, : len(tree.tokens)] = torch.tensor(tree.tokens)
        depths[row, : len(tree.tokens)] = torch.tensor(tree.depths)
    states = _states(model, ids.to(device), depths.to(device), mask.to(device)).flatten(0, 1)  # [trees * size, dim]
    wanted = [(i, row * size + nodes) for row, tree in enumerate(trees) for i, nodes in tree.ends.items()]
    nodes = np.concatenate([nodes for _, nodes in wanted])
    targets = np.concatenate([np.array(sequences[i][0][sequences[i][1] :]) for i, _ in wanted])
    found = _picked(model, states, nodes, targets, max(1, logits_at_once // model.config.vocab_size))
    edges = np.cumsum([len(own) for _, own in wanted])[:-1]
    return {i: values for (i, _), values in zip(wanted, np.split(found, edges), strict=True)}


def _states(model: Transformer, ids: Tensor, depths: Tensor, mask: Tensor) -> Tensor:
    """Hidden states [rows, size, dim] of tokens that see what ``mask`` lets them see, at positions ``depths``."""
    x = F.embedding(ids, model.model.embed_tokens.weight).to(model.compute_dtype)
    cos, sin = model.rope(0, int(depths.max()) + 1, ids.device)
    rope = cos[depths][:, None], sin[depths][:, None]  # [rows, 1, size, head]
    for block in model.model.layers:
        x = block(x, rope, mask)
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
        log = logits - torch.logsumexp(logits, -1, keepdim=True)
        here = np.flatnonzero((of >= begin) & (of < begin + len(own)))
        rows, columns = torch.from_numpy(of[here] - begin), torch.from_numpy(targets[here])
        found[here] = log[rows.to(log.device), columns.to(log.device)].double().cpu().numpy()
    return found


def batches(trees: Sequence[Tree], tokens: int) -> Iterator[list[Tree]]:
    """The trees, the largest first, in batches of about ``tokens`` slots."""
    batch: list[Tree] = []
    for tree in sorted(trees, key=lambda tree: -len(tree.tokens)):
        if batch and len(batch[0].tokens) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch
