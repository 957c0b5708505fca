"""Several answers behind one prompt in a row: the prompt is read once, and the answers do not see each other.

Hidden states are those of every answer alone after its own copy of the prompt.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.network.transformer import Transformer

ALONE = -2
"""What ``prompt`` says of a slot that has none: the number of no document."""


def hidden(model: Transformer, ids: Tensor, doc: Tensor, prompt: Tensor, position: Tensor) -> Tensor:
    """Hidden states [batch, T, dim] after the final norm of ``ids`` [batch, T].

    A slot sees the slots up to its own of its document ``doc`` [batch, T] and of the document ``prompt`` [batch, T]
    (:data:`ALONE`: of none); ``position`` [batch, T] is its place in what it so reads.
    """
    x = F.embedding(ids, model.model.embed_tokens.weight).to(model.compute_dtype)
    cos, sin = model.rope(0, model.config.max_seq_len, ids.device)
    rope = cos[position][:, None], sin[position][:, None]  # [batch, 1, T, head]
    mask = _mask(model, doc, prompt)
    for block in model.model.layers:
        if model.checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, rope, mask, use_reentrant=False)
        else:
            x = block(x, rope, mask)
    return model.model.norm(x)


def _mask(model: Transformer, doc: Tensor, prompt: Tensor) -> Any:
    """What :func:`model.network.transformer.attend` takes as mask, of [batch, 1, T, T]."""
    place = torch.arange(doc.shape[1], device=doc.device)
    own = doc[:, :, None] == doc[:, None, :]
    mask = ((place[None, :] <= place[:, None]) & (own | (prompt[:, :, None] == doc[:, None, :])))[:, None]
    return (mask,) if model.attention == "manual" else mask
