"""Keys and values of many sequences in the slots of one cache, and the pass that reads tokens into them (torch, any
device)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.rope import rope_tables
from model.network.transformer import Block, Transformer


@dataclass
class Piece:
    """Tokens of one sequence that follow each other from position ``start`` on, for its ``slot``."""

    slot: int
    start: int
    tokens: list[int]


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

    def read(self, pieces: list[Piece]) -> Tensor:
        """Logits fp32 [pieces, vocab] after the last token of each piece; its keys and values are kept."""
        model, device = self.model, self.keys.device
        ids = torch.tensor([token for piece in pieces for token in piece.tokens], device=device)
        at = torch.tensor([piece.start + i for piece in pieces for i in range(len(piece.tokens))], device=device)
        slot = torch.tensor([piece.slot for piece in pieces for _ in piece.tokens], device=device)
        x = F.embedding(ids, model.model.embed_tokens.weight).to(model.compute_dtype)  # [n, dim]
        rope = self.tables[0][at][:, None], self.tables[1][at][:, None]  # [n, 1, head]
        for layer, module in enumerate(model.model.layers):
            block = cast(Block, module)
            attention = block.self_attn
            h = block.input_layernorm(x)
            q = attention.q_norm(attention.q_proj(h).view(len(x), attention.heads, -1))
            k = attention.k_norm(attention.k_proj(h).view(len(x), attention.kv_heads, -1))
            v = attention.v_proj(h).view(len(x), attention.kv_heads, -1)
            self.keys[layer, slot, :, at] = _rotate(k, *rope)
            self.values[layer, slot, :, at] = v
            x = x + attention.o_proj(self._attend(layer, _rotate(q, *rope), pieces))
            # a mixture of experts takes [batch, T, dim]
            x = x + block.mlp(block.post_attention_layernorm(x)[None])[0]
        last = torch.tensor([len(piece.tokens) for piece in pieces], device=device).cumsum(0) - 1
        h = model.model.norm(x[last])
        return F.linear(h, model.head.to(h.dtype)).float()

    def _attend(self, layer: int, q: Tensor, pieces: list[Piece]) -> Tensor:
        """q [n, heads, head] of all pieces to [n, heads * head]."""
        out = torch.empty_like(q)
        begin = 0
        for piece in pieces:
            end, filled = begin + len(piece.tokens), piece.start + len(piece.tokens)
            k, v = self.keys[layer, piece.slot, :, :filled], self.values[layer, piece.slot, :, :filled]
            position = torch.arange(filled, device=q.device)
            seen = position[None] <= position[piece.start :, None]
            out[begin:end] = F.scaled_dot_product_attention(
                q[begin:end].transpose(0, 1)[None], k[None], v[None], attn_mask=seen, enable_gqa=True
            )[0].transpose(0, 1)
            begin = end
        return out.flatten(1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin
