"""Keys and values of many sequences in the slots of one cache, and the pass that reads tokens into them (torch, any
device)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.generation.steps import Steps
from model.network.rope import rope_tables, rotate
from model.network.transformer import Block, Transformer


@dataclass
class Pieces:
    """What one pass reads: of each piece, its slot, the position it starts at and how many tokens follow each other
    there (int64 [pieces] each); ``ids`` int64, those of all pieces one after the other."""

    slots: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    ids: np.ndarray

    def some(self, chosen: np.ndarray) -> Pieces:
        """Those pieces alone (bool [pieces])."""
        ids = self.ids[np.repeat(chosen, self.counts)]
        return Pieces(self.slots[chosen], self.starts[chosen], self.counts[chosen], ids)

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each piece ends in ``ids``."""
        return self.counts.cumsum()

    @cached_property
    def rows(self) -> np.ndarray:
        """Slot and position of each token, int64 [tokens, 2]."""
        begins = self.ends - self.counts
        return np.stack(
            (
                np.repeat(self.slots, self.counts),
                np.arange(len(self.ids)) + np.repeat(self.starts - begins, self.counts),
            ),
            1,
        )


def roomy(length: int, window: int) -> int:
    """Capacity for sequences of ``length`` tokens: a power of two, so that a cache seldom grows, within the window."""
    return min(window, 1 << max(6, (length - 1).bit_length()))


def fitting(model: Transformer, length: int, most: int, share: float = 0.5) -> int:
    """How many sequences of ``length`` tokens a ``share`` of a GPU's free memory holds, at least 1 and at most ``most``
    (which it is on a CPU)."""
    config, device = model.config, model.head.device
    if device.type != "cuda":
        return most
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = roomy(length, config.max_seq_len)
    each = 2 * config.layers * config.kv_heads * config.head_size * room * model.compute_dtype.itemsize
    return max(1, min(most, int(share * (torch.cuda.mem_get_info(device)[0] + unused) / each)))


class SlotCache:
    """``slots`` sequences of at most ``capacity`` tokens each; only what is filled takes memory on a CPU.

    There is a spare slot, for the rows of a step that nobody needs. On CUDA single tokens are read by a graph; not by
    experts, which are counted on the host.
    """

    CHUNK, BESIDE = 8192, 1024
    """Most tokens of prompts to be read in one pass, alone and beside sequences that are being answered."""

    def __init__(self, model: Transformer, slots: int, capacity: int) -> None:
        config, device = model.config, model.head.device
        self.model, self.capacity, self.slots = model, 0, slots
        shape = (config.layers, slots + 1, config.kv_heads, 0, config.head_size)
        self.keys = torch.empty(shape, dtype=model.compute_dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.steps = Steps(self._singles, slots, device, record=device.type == "cuda" and not config.experts)
        self.places: list[int] = []
        self.refresh()
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Make room for sequences of ``capacity`` tokens; what is kept stays."""
        old, filled = (self.keys, self.values), self.capacity
        shape = (*self.keys.shape[:3], capacity, self.keys.shape[4])
        # zeros: what is hidden must be numbers, since not even a weight of 0 undoes one that is none
        self.keys, self.values = self.keys.new_zeros(shape), self.keys.new_zeros(shape)
        self.keys[:, :, :, :filled], self.values[:, :, :, :filled] = old
        self.tables = rope_tables(self.model.config, capacity, self.keys.device, self.keys.dtype)
        self.capacity = capacity
        self.steps.forget()

    def copy(self, source: int, target: int, count: int) -> None:
        """Give ``target`` the first ``count`` tokens of ``source``."""
        self.keys[:, target, :, :count] = self.keys[:, source, :, :count]
        self.values[:, target, :, :count] = self.values[:, source, :, :count]

    def refresh(self) -> None:
        """The weights have changed; here they are read at each use, by a graph from where they lay when it was
        recorded."""
        places = [p.data_ptr() for p in self.model.parameters()]
        if places != self.places:
            self.places = places
            self.steps.forget()

    @torch.no_grad()  # not inference_mode: what the model caches would be unusable for training after it
    def read(self, pieces: Pieces, wanted: np.ndarray) -> Tensor:
        """Logits fp32 [wanted, vocab] after the last token of each wanted piece; keys and values of all are kept."""
        alone = pieces.counts == 1
        if not alone.any():
            return self._read(pieces, wanted)
        one = pieces.some(alone)
        logits = self.steps(one.ids, one.slots, one.starts, self.capacity)
        order = wanted
        if not alone.all():
            several = pieces.some(~alone)
            logits = torch.cat([logits, self._read(several, np.arange(len(several.counts)))])
            order = np.argsort(np.argsort(~alone, kind="stable"))[wanted]  # those of one token come first
        return (
            logits if len(order) == len(logits) == len(one.ids) else logits[torch.from_numpy(order).to(logits.device)]
        )

    def _read(self, pieces: Pieces, wanted: np.ndarray) -> Tensor:
        device = self.keys.device
        rows = torch.from_numpy(np.concatenate((pieces.ids[None], pieces.rows.T))).to(device)
        groups = list(_groups(pieces, device))
        x = self._pass(rows, lambda layer, q: self._attend(layer, q, groups))
        return self._logits(x[torch.from_numpy(pieces.ends[wanted] - 1).to(device)])

    def _pass(self, rows: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The last layer's output [n, dim] for ``rows`` int64 [3, n] of ids, slots and positions; ``attend`` maps a
        layer and q [n, heads, head] to [n, heads * head]."""
        model, (ids, slot, at) = self.model, rows.unbind()
        x = F.embedding(ids, model.model.embed_tokens.weight).to(model.compute_dtype)  # [n, dim]
        rope = self.tables[0][at][:, None], self.tables[1][at][:, None]  # [n, 1, head]
        for layer, module in enumerate(model.model.layers):
            block = cast(Block, module)
            attention = block.self_attn
            h = block.input_layernorm(x)
            q = attention.q_norm(attention.q_proj(h).view(len(x), attention.heads, -1))
            k = attention.k_norm(attention.k_proj(h).view(len(x), attention.kv_heads, -1))
            v = attention.v_proj(h).view(len(x), attention.kv_heads, -1)
            self.keys[layer, slot, :, at] = rotate(k, *rope)
            self.values[layer, slot, :, at] = v
            x = x + attention.o_proj(attend(layer, rotate(q, *rope)))
            # a mixture of experts takes [batch, T, dim]
            x = x + block.mlp(block.post_attention_layernorm(x)[None])[0]
        return x

    def _logits(self, x: Tensor) -> Tensor:
        """fp32 [n, vocab] of the last layer's output [n, dim]."""
        h = self.model.model.norm(x)
        return F.linear(h, self.model.head.to(h.dtype)).float()

    def _singles(self, rows: Tensor, filled: int) -> Tensor:
        """Logits fp32 [n, vocab] where each piece is one token: all at once, looking back over ``filled`` positions.
        Waits for nothing and takes its sizes from no value, so that it can be recorded."""
        slot, at = rows[1:].unbind()
        seen = torch.arange(filled, device=rows.device) <= at[:, None]  # [n, filled]
        mask = seen[:, None, None]  # [n, 1, 1, filled]

        def attend(layer: int, q: Tensor) -> Tensor:
            k, v = (part[layer, :, :, :filled].index_select(0, slot) for part in (self.keys, self.values))
            return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, enable_gqa=True).flatten(1)

        return self._logits(self._pass(rows, attend))

    def _attend(self, layer: int, q: Tensor, groups: Sequence[_Group]) -> Tensor:
        """q [n, heads, head] of all pieces to [n, heads * head]."""
        out = torch.empty_like(q)
        for group in groups:
            filled = group.mask.shape[-1]
            k, v = (part[layer, :, :, :filled].index_select(0, group.slots) for part in (self.keys, self.values))
            own = q[group.rows].transpose(1, 2)  # [pieces, heads, longest, head]
            own = F.scaled_dot_product_attention(own, k, v, attn_mask=group.mask, enable_gqa=True)
            out[group.real] = own.transpose(1, 2).flatten(0, 1)[group.places]
        return out.flatten(1)


@dataclass
class _Group:
    """Pieces of about as many tokens, which are attended to at once; the shorter are padded with their last token."""

    slots: Tensor  # [pieces]
    rows: Tensor  # [pieces, longest], of the tokens of a pass
    mask: Tensor  # bool [pieces, 1, longest, filled]
    real: Tensor  # [tokens of the group], rows again without padding
    places: Tensor  # the same where they stand in rows


def _groups(pieces: Pieces, device: torch.device) -> Iterator[_Group]:
    """Groups by powers of two, so that padding at most doubles the work."""
    sizes = np.frexp(pieces.counts - 0.5)[1]
    for size in np.unique(sizes):
        own = np.flatnonzero(sizes == size)
        counts, filled = pieces.counts[own, None], int((pieces.starts + pieces.counts)[own].max())
        at = np.arange(counts.max())[None]
        inside = np.minimum(at, counts - 1)  # [pieces, longest]
        rows, positions = (pieces.ends[own, None] - counts) + inside, pieces.starts[own, None] + inside
        real = at < counts
        arrays = pieces.slots[own], rows, positions, rows[real], np.flatnonzero(real)
        slots, rows, positions, kept, places = (torch.from_numpy(array).to(device) for array in arrays)
        mask = torch.arange(filled, device=device) <= positions[:, None, :, None]
        yield _Group(slots, rows, mask, kept, places)
