"""The decoder: RMSNorm, rotary positions, grouped-query attention with optional QK-norm, SwiGLU or experts.

One class is Llama, Qwen3 or Qwen3-MoE, depending on :class:`ModelConfig`; parameter names are those of Hugging Face
``transformers``, so a state dict needs no translation. Weights stay in the dtype they were loaded in (fp32 when
training) and are cast to ``compute_dtype`` at each use: explicit casts compile into the matrix products, where autocast
does not. The document mask makes packed rows equal to separate sequences; positions run through a whole row, because
rotary attention sees differences only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.network.moe import MoE, balance_loss
from model.network.rope import rope_tables, rotate
from model.specs.shape import ModelConfig


class KVCache:
    """Keys and values of the tokens read so far, for generation: ``length`` slots filled of ``capacity``.

    ``pad`` [batch] counts the slots at the left of each sequence that hold padding (prompts of different lengths are
    aligned at the right); they are never attended to.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        pad: Tensor | None = None,
    ) -> None:
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length, self.capacity, self.pad = 0, capacity, pad

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [batch, kv_heads, new, head]; give all so far. ``length`` moves when the pass
        ends."""
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"KVCache of {self.capacity} slots cannot take {end} tokens; make it larger")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Linear(nn.Linear):
    """A matrix without bias, cast to its input's dtype."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal grouped-query attention over [batch, T, dim]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, head = config, config.head_size
        self.heads, self.kv_heads, self.head = c.heads, c.kv_heads, head
        self.q_proj = Linear(c.dim, c.heads * head)
        self.k_proj = Linear(c.dim, c.kv_heads * head)
        self.v_proj = Linear(c.dim, c.kv_heads * head)
        self.o_proj = Linear(c.heads * head, c.dim)
        self.q_norm = RMSNorm(head, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head, c.norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Any, layer: int, cache: KVCache | None) -> Tensor:
        b, t, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(b, t, self.heads, self.head)).transpose(1, 2)  # [b, heads, t, head]
        k = self.k_norm(self.k_proj(x).view(b, t, self.kv_heads, self.head)).transpose(1, 2)  # [b, kv_heads, t, head]
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head).transpose(1, 2)  # [b, kv_heads, t, head]
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            # the keys so far, [b, kv_heads, s, head] with s >= t
            k, v = cache.append(layer, k, v)
        out = attend(q, k, v, mask)  # [b, heads, t, head]
        return self.o_proj(out.transpose(1, 2).reshape(b, t, self.heads * self.head))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.dim, config.ffn)
        self.up_proj = Linear(config.dim, config.ffn)
        self.down_proj = Linear(config.ffn, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream after a norm of its input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MoE(config) if config.experts else FeedForward(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Any, layer: int = 0, cache: KVCache | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, layer, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and final norm: token ids [batch, T] to hidden states [batch, T, dim]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)


class Transformer(nn.Module):
    """A causal language model. ``compute_dtype`` is what matrices multiply in; ``attention`` is manual, sdpa or
    flex."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("vocab_size is 0: take it from the tokenizer before the model is made")
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tied else Linear(config.dim, config.vocab_size)
        self.compute_dtype = torch.float32
        self.attention = "sdpa"
        self.checkpointing = self.compiled = False
        self._tables: dict[Any, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_dir(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Transformer:
        """The model in a Hugging Face directory, weights in ``dtype``. Raises ValueError for a layout that is none of
        ours."""
        from model.network.weights import load_model

        model = load_model(path).to(device=device, dtype=dtype)
        model.compute_dtype = dtype
        return model

    @property
    def head(self) -> Tensor:
        """The output matrix [vocab, dim]."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(
        self, ids: Tensor, doc: Tensor | None = None, cache: KVCache | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Hidden states [batch, T, dim] after the final norm. ``doc`` [batch, T] int: tokens see only their own
        document. ``noise`` [batch, T, dim] is added to the embeddings."""
        start = cache.length if cache else 0
        x = F.embedding(ids, self.model.embed_tokens.weight)  # [batch, T, dim]
        x = (x if noise is None else x + noise).to(self.compute_dtype)
        rope = self.rope(start, start + ids.shape[1], ids.device)
        if cache and cache.pad is not None:
            rope = self.own_rope(start, start + ids.shape[1], cache.pad)
        mask = self.mask(ids, doc, cache)
        for layer, block in enumerate(self.model.layers):
            # a checkpointed block keeps its input alone and is computed again in the backward pass
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, mask, use_reentrant=False)
            elif cache is None:
                x = block(x, rope, mask)
            else:
                x = block(x, rope, mask, layer, cache)
        if cache:
            cache.length += ids.shape[1]
        return self.model.norm(x)

    def forward(
        self, ids: Tensor, doc: Tensor | None = None, cache: KVCache | None = None, last: bool = False
    ) -> Tensor:
        """Logits [batch, T, vocab] fp32; ``last`` computes only the final position's ([batch, 1, vocab])."""
        h = self.hidden(ids, doc, cache)
        h = h[:, -1:] if last else h  # [batch, 1 or T, dim]
        return F.linear(h, self.head.to(h.dtype)).float()

    def balance(self, doc: Tensor | None = None) -> Tensor | float:
        """Load-balancing loss of the last pass times ``router_aux``; 0 without experts. Slots whose ``doc`` [batch, T]
        is negative are padding and do not count."""
        if not self.config.experts:
            return 0.0
        real = None if doc is None else doc >= 0
        mixtures = [cast(MoE, block.mlp) for block in self.model.layers]
        routed = [mixture.routed for mixture in mixtures if mixture.routed is not None]
        return self.config.router_aux * balance_loss(routed, real)

    def cache(self, batch: int, capacity: int, pad: Tensor | None = None) -> KVCache:
        """An empty cache that fits this model."""
        return KVCache(self.config, batch, capacity, dtype=self.compute_dtype, device=self.head.device, pad=pad)

    def rope(self, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines [end - start, head] of the positions, in the compute dtype."""
        # tables in powers of two, so that generation does not make one a token
        size = 1 << max(8, (end - 1).bit_length())
        key = (size, device, self.compute_dtype)
        if key not in self._tables:
            self._tables[key] = rope_tables(self.config, size, device, self.compute_dtype)
        cos, sin = self._tables[key]
        return cos[start:end], sin[start:end]

    def own_rope(self, start: int, end: int, pad: Tensor) -> tuple[Tensor, Tensor]:
        """The same as [batch, 1, end - start, head] for sequences after ``pad`` [batch] slots of padding: each counts
        its positions from its own first token, so that rounding is what it would be alone."""
        cos, sin = self.rope(0, end, pad.device)
        own = (torch.arange(start, end, device=pad.device) - pad[:, None]).clamp_min(0)
        return cos[own][:, None], sin[own][:, None]

    def mask(self, ids: Tensor, doc: Tensor | None, cache: KVCache | None) -> Any:
        """What :func:`attend` takes as mask: "causal", a bool tensor that broadcasts to [batch, 1, T, keys], or a
        BlockMask."""
        t, past = ids.shape[1], cache.length if cache else 0
        if self.attention == "flex" and cache is None and doc is not None:
            return flex_mask(doc)
        if doc is None and self.attention == "sdpa" and not past and (cache is None or cache.pad is None):
            return "causal"
        key = torch.arange(past + t, device=ids.device)
        mask = (key[None, :] <= key[past:, None])[None, None]  # [1, 1, T, keys]
        if doc is not None:
            mask = mask & (doc[:, None, :, None] == doc[:, None, None, :])  # [batch, 1, T, T]
        if cache is not None and cache.pad is not None:
            own = (
                key[None, None, None, :] == key[past:][None, None, :, None]
            )  # a padding slot sees itself, or softmax gives NaN
            mask = mask & ((key >= cache.pad[:, None, None, None]) | own)
        return (mask,) if self.attention == "manual" and cache is None else mask


QUERIES = 128
"""Rows of a block in plain attention."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """Softmax attention: q [b, heads, T, head], k and v [b, kv_heads, S, head] to [b, heads, T, head].

    A bool mask goes to scaled_dot_product_attention; a one-tuple of it asks for the plain form, which is the fastest on
    a CPU at short T when compiled (the CPU flash kernel's backward is slow there).
    """
    if isinstance(mask, str):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    if isinstance(mask, tuple):
        return _attend_plain(q, k, v, mask[0])
    if isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """In blocks of queries, each with the keys up to its end: most of what the causal mask hides is never computed."""
    t = q.shape[2]
    if t <= QUERIES or k.shape[2] != t:
        return _attend_block(q, k, v, mask)
    # under the causal mask a block of queries needs no keys past its end
    blocks = [(begin, min(begin + QUERIES, t)) for begin in range(0, t, QUERIES)]
    return torch.cat(
        [
            _attend_block(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], mask[:, :, begin:end, :end])
            for begin, end in blocks
        ],
        2,
    )


def _attend_block(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    b, heads, t, head = q.shape  # k and v [b, kv, s, head]
    kv, s = k.shape[1], k.shape[2]
    group = heads // kv  # query heads that share one key head are folded into the rows of one product
    scores = (q.reshape(b, kv, group * t, head) @ k.transpose(-2, -1)).view(b, kv, group, t, s) * head**-0.5
    # softmax in fp32: exponentials of bf16 scores lose what tells them apart
    scores = torch.where(mask[:, :, None], scores.float(), float("-inf"))
    weights = torch.softmax(scores, -1).to(v.dtype)  # [b, kv, group, t, s]
    return (weights.view(b, kv, group * t, s) @ v).view(b, heads, t, head)


def flex_mask(doc: Tensor) -> Any:
    """The causal document mask of ``doc`` [b, T] as a FlexAttention BlockMask (CUDA)."""
    from torch.nn.attention.flex_attention import create_block_mask

    def see(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (doc[b, q] == doc[b, k])

    return create_block_mask(see, doc.shape[0], None, doc.shape[1], doc.shape[1], device=doc.device)


@torch.no_grad()
def initialize(model: Transformer, seed: int) -> None:
    """Fresh weights, the same for a seed on every device: N(0, 1/fan_in) matrices, N(0, 0.02^2) embeddings, zero
    outputs.

    ``o_proj`` and ``down_proj`` start at zero, so that every block starts as the identity (as in muP and nanochat).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            p.fill_(1.0)
        elif "o_proj" in name or "down_proj" in name:
            p.zero_()
        else:
            std = 0.02 if "embed" in name or "lm_head" in name else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * std)
