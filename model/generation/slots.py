"""Keys and values of many sequences in the slots of one cache, and the pass that reads tokens into them (torch, any
device)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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


class SlotCache:
    """``slots`` sequences of at most ``capacity`` tokens each; only what is filled takes memory on a CPU."""

    def __init__(self, model: Transformer, slots: int, capacity: int) -> None:
        config = model.config
        self.model, self.capacity = model, 0
        shape = (config.layers, slots, config.kv_heads, 0, config.head_size)
        self.keys = torch.empty(shape, dtype=model.compute_dtype, device=model.head.device)
        self.values = torch.empty_like(self.keys)
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Make room for sequences of ``capacity`` tokens; what is kept stays."""
        old, filled = (self.keys, self.values), self.capacity
        shape = (*self.keys.shape[:3], capacity, self.keys.shape[4])
        self.keys, self.values = self.keys.new_empty(shape), self.keys.new_empty(shape)
        self.keys[:, :, :, :filled], self.values[:, :, :, :filled] = old
        self.tables = rope_tables(self.model.config, capacity, self.keys.device, self.keys.dtype)
        self.capacity = capacity

    def copy(self, source: int, target: int, count: int) -> None:
        """Give ``target`` the first ``count`` tokens of ``source``."""
        self.keys[:, target, :, :count] = self.keys[:, source, :, :count]
        self.values[:, target, :, :count] = self.values[:, source, :, :count]

    def refresh(self) -> None:
        """The weights have changed; here they are read at each use."""

    @torch.no_grad()  # not inference_mode: what the model caches would be unusable for training after it
    def read(self, pieces: Pieces, wanted: np.ndarray) -> Tensor:
        """Logits fp32 [wanted, vocab] after the last token of each wanted piece; keys and values of all are kept."""
        model, device = self.model, self.keys.device
        ids = torch.from_numpy(pieces.ids).to(device)
        slot, at = torch.from_numpy(pieces.rows).to(device).unbind(1)
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
            x = x + attention.o_proj(self._attend(layer, rotate(q, *rope), pieces))
            # a mixture of experts takes [batch, T, dim]
            x = x + block.mlp(block.post_attention_layernorm(x)[None])[0]
        h = model.model.norm(x[torch.from_numpy(pieces.ends[wanted] - 1).to(device)])
        return F.linear(h, model.head.to(h.dtype)).float()

    def _attend(self, layer: int, q: Tensor, pieces: Pieces) -> Tensor:
        """q [n, heads, head] of all pieces to [n, heads * head]."""
        if pieces.counts.max() == 1:
            return self._attend_singly(layer, q, pieces)
        out = torch.empty_like(q)
        for slot, start, count, end in zip(pieces.slots, pieces.starts, pieces.counts, pieces.ends, strict=True):
            k, v = self.keys[layer, slot, :, : start + count], self.values[layer, slot, :, : start + count]
            position = torch.arange(start + count, device=q.device)
            seen = position[None] <= position[start:, None]
            own = q[end - count : end].transpose(0, 1)[None]  # [1, heads, count, head]
            own = F.scaled_dot_product_attention(own, k[None], v[None], attn_mask=seen, enable_gqa=True)
            out[end - count : end] = own[0].transpose(0, 1)
        return out.flatten(1)

    def _attend_singly(self, layer: int, q: Tensor, pieces: Pieces) -> Tensor:
        """The same where each piece is one token: all slots at once."""
        slots, filled = torch.from_numpy(pieces.slots).to(q.device), int(pieces.starts.max()) + 1
        k, v = self.keys[layer, slots, :, :filled], self.values[layer, slots, :, :filled]  # [n, kv, filled, head]
        position = torch.arange(filled, device=q.device)
        seen = position[None] <= torch.from_numpy(pieces.starts).to(q.device)[:, None]
        # what no one has written yet may be no number, which neither a mask nor a weight of 0 undoes
        k, v = (part.masked_fill(~seen[:, None, :, None], 0) for part in (k, v))
        mask = seen[:, None, None]  # [n, 1, 1, filled]
        return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, enable_gqa=True).flatten(1)
