"""A model as generation on a CPU wants it: its matrices in panels, and keys and values in slots beside them.

Packing is a copy, so that the model can train on; :meth:`Packed.refresh` makes it anew. Sums are fp32. A model that
computes in bf16 has its matrices packed as bf16, which halves what a token reads from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.generation.kernels.forward import QUERIES, forward, logits
from model.generation.kernels.tiles import PANEL
from model.generation.slots import Pieces
from model.network.moe import MoE
from model.network.rope import rope_tables
from model.network.transformer import Block, FeedForward, Transformer
from model.specs.shape import ModelConfig


class Packed:
    """``slots`` sequences on a CPU; the face of :class:`~model.generation.slots.SlotCache`.

    ``shape`` is what the kernels know of the model: dim, heads, key heads, head size, width of the feed-forward (of one
    expert), experts, whether queries and keys are normalised, experts a token.
    """

    def __init__(self, model: Transformer, slots: int, capacity: int) -> None:
        c = self.config = model.config
        self.model, self.capacity = model, 0
        self.places, self.head_place, size = _layout(c)
        half = model.compute_dtype == torch.bfloat16
        self._packed = torch.empty(size, dtype=torch.bfloat16 if half else torch.float32)
        # numba knows no bf16: its kernels get the bits
        self.weights = self._packed.view(torch.uint16).numpy() if half else self._packed.numpy()
        self.norms = np.ones((c.layers, 4, max(c.dim, c.head_size)), np.float32)
        self.width = c.expert_size if c.experts else c.ffn
        numbers = (c.dim, c.heads, c.kv_heads, c.head_size, self.width, c.experts, c.qk_norm, c.experts_per_token)
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
        for module, norms, places in zip(self.model.model.layers, self.norms, self.places, strict=True):
            block = cast(Block, module)
            attention = block.self_attn
            norms[0, : self.config.dim] = _numbers(block.input_layernorm.weight)
            norms[1, : self.config.dim] = _numbers(block.post_attention_layernorm.weight)
            if self.config.qk_norm:
                norms[2, : self.config.head_size] = _numbers(attention.q_norm.weight)
                norms[3, : self.config.head_size] = _numbers(attention.k_norm.weight)
            self._pack(
                torch.cat([_matrix(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj)]), places[0]
            )
            self._pack(_matrix(attention.o_proj), places[1])
            if isinstance(block.mlp, MoE):
                experts = block.mlp.experts
                self._pack(block.mlp.gate.weight, places[2])
                for e in range(self.config.experts):
                    self._pack_gated(experts.gate_proj[e], experts.up_proj[e], places[3 + 2 * e])
                    self._pack(experts.down_proj[e], places[4 + 2 * e])
            else:
                mlp = cast(FeedForward, block.mlp)
                self._pack_gated(_matrix(mlp.gate_proj), _matrix(mlp.up_proj), places[2])
                self._pack(_matrix(mlp.down_proj), places[3])
        self.norm = _numbers(self.model.model.norm.weight)
        self._pack(self.model.head, self.head_place)

    def _pack(self, matrix: Tensor, place: int) -> None:
        outputs, inputs = matrix.shape
        _fill(self._packed[place : place + pad(outputs) * inputs].view(-1, inputs, PANEL), matrix)

    def _pack_gated(self, gate: Tensor, up: Tensor, place: int) -> None:
        """A panel of gate, its panel of up, and so on."""
        outputs, inputs = gate.shape
        panels = self._packed[place : place + 2 * pad(outputs) * inputs].view(-1, 2, inputs, PANEL)
        _fill(panels[:, 0], gate)
        _fill(panels[:, 1], up)

    @torch.no_grad()
    def read(self, pieces: Pieces, wanted: np.ndarray) -> np.ndarray:
        """Logits fp32 [wanted, pad(vocab)] after the last token of each wanted piece; keys and values of all are kept.
        The next call overwrites them."""
        n, count = len(pieces.ids), len(wanted)
        if n > self.room:
            self._make_room(max(n, 2 * self.room))
        rows, x, dim = pieces.rows, self._x[:n], self.config.dim
        x[:, :dim] = F.embedding(torch.from_numpy(pieces.ids), self.model.model.embed_tokens.weight).float().numpy()
        work = (self._h[:n], self._qkv[:n], self._inner, self._mixed[:n], self._gathered, self._scores, self._counts)
        spans = np.stack((pieces.ends - pieces.counts, pieces.counts), 1)
        last, h, out = pieces.ends[wanted] - 1, self._h[:count], self._logits[:count]

        def run(rank: int) -> None:
            forward(
                x, rows, spans, self.shape, self.eps, self.scale, self.weights, self.places, self.norms, self.rope,
                self.keys, self.values, work, self.meeting, rank, self.ranks,
            )  # fmt: skip
            logits(
                x, last, self.norm, dim, self.eps, self.weights, self.head_place, h, out, self.meeting, rank, self.ranks
            )

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
        self._logits = np.empty((n, pad(c.vocab_size)), np.float32)
        self.room = n


def pad(n: int) -> int:
    """The next multiple of a panel."""
    return -(-n // PANEL) * PANEL


def _layout(c: ModelConfig) -> tuple[np.ndarray, int, int]:
    """Where each matrix begins: int64 [layers, matrices], that of the output matrix, and the size of all."""
    attention = [pad((c.heads + 2 * c.kv_heads) * c.head_size) * c.dim, pad(c.dim) * c.heads * c.head_size]
    feed = [2 * pad(c.ffn) * c.dim, pad(c.dim) * c.ffn]
    if c.experts:
        feed = [pad(c.experts) * c.dim, *[2 * pad(c.expert_size) * c.dim, pad(c.dim) * c.expert_size] * c.experts]
    sizes = np.array([attention + feed] * c.layers, np.int64)
    ends = sizes.cumsum().reshape(sizes.shape)
    return ends - sizes, int(ends[-1, -1]), int(ends[-1, -1]) + pad(c.vocab_size) * c.dim


def _matrix(module: nn.Module) -> Tensor:
    """The matrix that a layer multiplies by, an adapter's share included (:mod:`model.network.lora`)."""
    own: Any = module
    if not hasattr(own, "lora_B"):
        return own.weight
    return own.weight + own.scale * (own.lora_B.weight @ own.lora_A.weight)


def _fill(panels: Tensor, matrix: Tensor) -> None:
    """``panels`` [outputs / PANEL, inputs, PANEL] from a matrix [outputs, inputs]; what is missing of the last is 0."""
    whole, inputs = len(matrix) // PANEL, matrix.shape[1]
    panels[:whole] = matrix[: whole * PANEL].view(whole, PANEL, inputs).mT
    if whole < len(panels):
        panels[whole] = F.pad(matrix[whole * PANEL :].t(), (0, PANEL - len(matrix) % PANEL))


def _numbers(weight: Any) -> np.ndarray:
    return weight.detach().float().numpy().copy()
