"""A model as generation on a CPU wants it: its matrices in panels, and keys and values in slots beside them.

Packing is a copy, so that the model can train on; :meth:`Packed.refresh` makes it anew. Sums are fp32. Matrices that
bf16 holds exactly are packed as bf16, which halves what a token reads from memory and changes no result; those of a
model that computes in bf16 are rounded to it; int8 and int4 ones stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from model.generation.kernels.forward import QUERIES, forward, logits
from model.generation.kernels.matrices import BF16, FP32, panel_bytes
from model.generation.kernels.tiles import PANEL
from model.generation.panels import Parts, fill, fits_bf16, form_of, joined, layout, pad, parts
from model.generation.slots import Pieces
from model.network.moe import Experts, MoE
from model.network.rope import rope_tables
from model.network.transformer import Block, FeedForward, Transformer


class Packed:
    """``slots`` sequences on a CPU; the face of :class:`~model.generation.slots.SlotCache`.

    ``shape`` is what the kernels know of the model: dim, heads, key heads, head size, width of the feed-forward (of one
    expert), experts, whether queries and keys are normalised, experts a token, the matrices' form and its group.
    """

    CHUNK, BESIDE = 256, 64
    """Most tokens of prompts to be read in one pass, alone and beside sequences that are being answered."""

    def __init__(self, model: Transformer, slots: int, capacity: int) -> None:
        c = self.config = model.config
        self.model, self.capacity = model, 0
        self.forms = (-1, 0, -1)  # of the matrices, their group, of the output matrix
        self.norms = np.ones((c.layers, 4, max(c.dim, c.head_size)), np.float32)
        self.width = c.expert_size if c.experts else c.ffn
        numbers = (c.dim, c.heads, c.kv_heads, c.head_size, self.width, c.experts, c.qk_norm, c.experts_per_token, 0, 0)
        self.shape = np.array(numbers, np.int64)
        self.eps, self.scale = np.float32(c.norm_eps), np.float32(c.head_size**-0.5)
        self.ranks, self.meeting = torch.get_num_threads(), np.zeros(1, np.int64)
        self.keys = np.empty((c.layers, slots, c.kv_heads, 0, c.head_size, PANEL), np.float32)
        self.values = np.empty((c.layers, slots, c.kv_heads, pad(c.head_size) // PANEL, 0, PANEL), np.float32)
        self.grow(capacity)
        self.refresh()

    def grow(self, capacity: int) -> None:
        """Make room for sequences of ``capacity`` tokens; what is kept stays. Memory is taken as it is filled."""
        capacity, filled = pad(capacity), self.capacity
        keys, values = self.keys, self.values
        self.keys = np.empty((*keys.shape[:3], capacity // PANEL, *keys.shape[4:]), np.float32)
        self.values = np.empty((*values.shape[:4], capacity, PANEL), np.float32)
        self.keys[:, :, :, : filled // PANEL], self.values[:, :, :, :, :filled] = keys, values
        self.rope = torch.stack(rope_tables(self.config, capacity, "cpu", torch.float32)).numpy()
        self.capacity, self.room = capacity, 0

    def copy(self, source: int, target: int, count: int) -> None:
        """Give ``target`` the first ``count`` tokens of ``source``."""
        blocks = pad(count) // PANEL
        self.keys[:, target, :, :blocks] = self.keys[:, source, :, :blocks]
        self.values[:, target, :, :, :count] = self.values[:, source, :, :, :count]

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the model's weights again."""
        self._lay_out()
        for module, norms, places in zip(self.model.model.layers, self.norms, self.places, strict=True):
            block = cast(Block, module)
            attention = block.self_attn
            norms[0, : self.config.dim] = _numbers(block.input_layernorm.weight)
            norms[1, : self.config.dim] = _numbers(block.post_attention_layernorm.weight)
            if self.config.qk_norm:
                norms[2, : self.config.head_size] = _numbers(attention.q_norm.weight)
                norms[3, : self.config.head_size] = _numbers(attention.k_norm.weight)
            qkv = joined(*map(parts, (attention.q_proj, attention.k_proj, attention.v_proj)))
            self._pack(qkv, places[0])
            self._pack(parts(attention.o_proj), places[1])
            if isinstance(block.mlp, MoE):
                self._pack((block.mlp.gate.weight,), places[2], FP32)
                for e in range(self.config.experts):
                    gate, up, down = _expert(block.mlp.experts, e)
                    self._pack_gated(gate, up, places[3 + 2 * e])
                    self._pack(down, places[4 + 2 * e])
            else:
                mlp = cast(FeedForward, block.mlp)
                self._pack_gated(parts(mlp.gate_proj), parts(mlp.up_proj), places[2])
                self._pack(parts(mlp.down_proj), places[3])
        self.norm = _numbers(self.model.model.norm.weight)
        self._pack((self.model.head,), self.head_place, self.forms[2])

    def _lay_out(self) -> None:
        """Find out which forms the matrices have now, and make room for them."""
        first = cast(Block, self.model.model.layers[0]).self_attn.o_proj
        rounds = self.model.compute_dtype == torch.bfloat16  # as the model itself does then
        half = rounds or fits_bf16(self.model.head)
        kind, group = form_of(first)
        exact = (own[0] for module in self.model.model.layers for own in _matrices(cast(Block, module)))
        if kind == FP32 and (rounds or (half and all(map(fits_bf16, exact)))):
            kind = BF16
        forms = kind, group, BF16 if half else FP32
        if forms != self.forms:
            self.forms, self.shape[-2:] = forms, (kind, group)
            self.places, self.head_place, size = layout(self.config, *forms)
            self._packed = torch.zeros(size, dtype=torch.uint8)
            self.weights = self._packed.numpy()

    def _pack(self, matrix: Parts, place: int, kind: int | None = None) -> None:
        kind = self.forms[0] if kind is None else kind
        outputs, size = len(matrix[0]), panel_bytes(kind, self.forms[1], matrix[0].shape[1])
        fill(self._packed[place : place + pad(outputs) // PANEL * size].view(-1, size), kind, matrix)

    def _pack_gated(self, gate: Parts, up: Parts, place: int) -> None:
        """A panel of gate, its panel of up, and so on."""
        kind, group, _ = self.forms
        outputs, size = len(gate[0]), panel_bytes(kind, group, gate[0].shape[1])
        panels = self._packed[place : place + 2 * pad(outputs) // PANEL * size].view(-1, 2, size)
        fill(panels[:, 0], kind, gate)
        fill(panels[:, 1], kind, up)

    @torch.no_grad()
    def read(self, pieces: Pieces, wanted: np.ndarray) -> np.ndarray:
        """Logits fp32 [wanted, pad(vocab)] after the last token of each wanted piece; keys and values of all are kept.
        The next call overwrites them."""
        n, count = len(pieces.ids), len(wanted)
        if n > self.room:
            self._make_room(max(n, 2 * self.room))
        rows, x, dim = pieces.rows, self._x[:n], self.config.dim
        x[:, :dim] = F.embedding(torch.from_numpy(pieces.ids), self.model.model.embed_tokens.weight).float().numpy()
        work = (
            self._h[:n], self._qkv[:n], self._inner, self._mixed[:n], self._gathered, self._scores, self._counts,
            self._codes, self._steps,
        )  # fmt: skip
        spans = np.stack((pieces.ends - pieces.counts, pieces.counts), 1)
        last, h, out = pieces.ends[wanted] - 1, self._h[:count], self._logits[:count]

        def run(rank: int) -> None:
            forward(
                x, rows, spans, self.shape, self.eps, self.scale, self.weights, self.places, self.norms, self.rope,
                self.keys, self.values, work, self.meeting, rank, self.ranks,
            )  # fmt: skip
            logits(
                x, last, self.norm, dim, self.eps, self.forms[2], self.weights, self.head_place, h, out, work,
                self.meeting, rank, self.ranks,
            )  # fmt: skip

        self._together(run)
        return out

    def _together(self, run: Callable[[int], None]) -> None:
        others = [self._threads.submit(run, rank) for rank in range(1, self.ranks)] if self.ranks > 1 else []
        run(0)
        for other in others:
            other.result()

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.ranks - 1, "generation")

    def _make_room(self, n: int) -> None:
        """Scratch for passes of ``n`` tokens."""
        c = self.config
        group, columns = c.heads // c.kv_heads, self.values.shape[3]
        copies = c.experts_per_token if c.experts else 1
        attention = QUERIES * group * (c.head_size + columns * PANEL + self.capacity)
        self._x = np.zeros((n, pad(c.dim)), np.float32)
        self._h = np.zeros_like(self._x)
        # a mixture's router leaves its choices here
        self._qkv = np.empty((n, max(pad((c.heads + 2 * c.kv_heads) * c.head_size), 2 * copies)), np.float32)
        self._inner = np.empty((n * copies, pad(self.width)), np.float32)
        self._mixed = np.empty((n, c.heads * c.head_size), np.float32)
        self._gathered = np.empty((n * copies if c.experts else 0, pad(c.dim)), np.float32)
        self._scores = np.empty((self.ranks, max(attention, QUERIES * 2 * PANEL, pad(c.experts))), np.float32)
        self._counts = np.empty(c.experts + 1 + 2 * n * copies if c.experts else 0, np.int64)
        widest = max(c.dim, c.heads * c.head_size, self.width)
        self._codes = np.zeros((self.ranks, n * copies * (widest + 3)), np.uint8)  # rows in int8, of each thread
        self._steps = np.empty((self.ranks, n * copies), np.float32)
        self._logits = np.empty((n, pad(c.vocab_size)), np.float32)
        self.room = n


def _matrices(block: Block) -> Iterator[Parts]:
    """All matrices of a block but its router, one at a time."""
    attention = block.self_attn
    yield from map(parts, (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj))
    if isinstance(block.mlp, MoE):
        for e in range(block.mlp.count):
            yield from _expert(block.mlp.experts, e)
    else:
        mlp = cast(FeedForward, block.mlp)
        yield from map(parts, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))


def _expert(experts: Any, e: int) -> tuple[Parts, Parts, Parts]:
    """Gate, up and down of one expert."""
    if isinstance(experts, Experts):
        return (experts.gate_proj[e],), (experts.up_proj[e],), (experts.down_proj[e],)
    own = experts.experts[e]  # rounded ones are modules
    return parts(own["gate_proj"]), parts(own["up_proj"]), parts(own["down_proj"])


def _numbers(weight: Any) -> np.ndarray:
    return weight.detach().float().numpy().copy()
