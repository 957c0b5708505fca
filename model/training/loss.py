"""Losses over hidden states that never hold all logits: chunks of rows, with the gradient made in the forward pass.

The cross-entropy needs logits twice (value and gradient); making both at once while a chunk is in cache saves one
head product in four and all of the [tokens, vocab] memory (the idea of Liger's fused linear cross-entropy and of
Apple's cut cross-entropy, arXiv:2411.09009). Rows that are no target are left out before the head is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = {"cpu": 256, "cuda": 8192}
"""Rows whose logits are held at once: on a CPU what stays in cache. Lists of targets are padded to a multiple of it."""
WHOLE = {"cpu": 512}
"""The same where every slot is a target and nothing has to be padded; a tenth faster on a CPU."""


def eager_gradient(h: Tensor, w: Tensor, targets: Tensor, weight: Tensor, z: float) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk: weighted loss sum, plain loss sum (scalars, fp32) and the gradient of the logits [n, vocab] in ``h``'s
    dtype.

    Written for the fewest passes over the logits in eager mode.
    """
    if z:
        return chunk_gradient(h, w, targets, weight, z)
    soft = torch.softmax(h @ w.t(), -1, dtype=torch.float32)  # [n, vocab]
    nll = -soft.gather(1, targets[:, None])[:, 0].clamp_min(1e-30).log()
    # the gradient is probabilities less one at the target; in place, the logits are the largest tensor there is
    grad = soft.mul_(weight[:, None]).to(h.dtype)
    grad.scatter_add_(1, targets[:, None], -weight[:, None].to(h.dtype))
    return (nll * weight).sum(), (nll * (weight != 0)).sum(), grad


def chunk_gradient(h: Tensor, w: Tensor, targets: Tensor, weight: Tensor, z: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same as pure functions of the logits, for ``torch.compile``, which makes two passes of it; and with
    z-loss."""
    logits = (h @ w.t()).float()  # [n, vocab]
    lse = torch.logsumexp(logits, -1)  # [n]
    nll = lse - logits.gather(1, targets[:, None])[:, 0]
    soft = torch.exp(logits - lse[:, None])  # [n, vocab]
    # a comparison and no scatter: it fuses with the rest
    at = torch.arange(logits.shape[1], device=h.device)[None, :] == targets[:, None]
    grad = (soft * (1 + 2 * z * lse)[:, None] - at.to(soft.dtype)) * weight[:, None]
    return ((nll + z * lse * lse) * weight).sum(), (nll * (weight != 0)).sum(), grad.to(h.dtype)


def _add_product(total: Tensor, grad: Tensor, h: Tensor) -> None:
    """Add a chunk's gradient of the head to ``total`` [vocab, dim] fp32, without a copy of it where dtypes allow."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.t(), h)
    else:
        total += grad.t() @ h


class InForward(torch.autograd.Function):
    """A loss by chunks of rows: ``gradient(h, w, *rows)`` gives a chunk's loss, its sums [k] and the gradient of its
    logits."""

    @staticmethod
    def forward(ctx, h: Tensor, head: Tensor, chunk: int, gradient: Callable, *columns: Tensor):
        w, learns = head.to(h.dtype), ctx.needs_input_grad[1]
        gh, gw = torch.empty_like(h), torch.zeros_like(head, dtype=torch.float32) if learns else None
        loss, sums = torch.zeros((), device=h.device), torch.zeros((), device=h.device)
        for i in range(0, h.shape[0], chunk):
            rows = slice(i, i + chunk)
            # forward and backward of one chunk, while its logits are in cache
            part, plain, grad = gradient(h[rows], w, *(c[rows] for c in columns))
            loss += part
            sums = sums + plain
            torch.mm(grad, w, out=gh[rows])
            if gw is not None:
                _add_product(gw, grad, h[rows])
            del grad  # or it lives beside the next chunk's logits
        ctx.save_for_backward(gh, gw)
        ctx.dtype = head.dtype
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx, g: Tensor, _: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride] - torch's is variadic
        gh, gw = ctx.saved_tensors
        return (
            # both gradients were made for a loss of weight 1
            gh * g.to(gh.dtype),
            None if gw is None else gw.mul_(g).to(ctx.dtype),
            *[None] * (len(ctx.needs_input_grad) - 2),
        )


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, head: Tensor, targets: Tensor, chunk: int):
        ctx.save_for_backward(h, head, targets)
        ctx.chunk = chunk
        return log_probs_now(h, head, targets, chunk)

    @staticmethod
    def backward(ctx, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride] - torch's is variadic
        h, head, targets = ctx.saved_tensors
        w, chunk, learns = head.to(h.dtype), ctx.chunk, ctx.needs_input_grad[1]
        gh, gw = torch.empty_like(h), torch.zeros_like(head, dtype=torch.float32) if learns else None
        for i in range(0, h.shape[0], chunk):
            rows = slice(i, i + chunk)
            # log-probability is minus the loss, so its gradient is the loss's at weight -g
            _, _, grad = eager_gradient(h[rows], w, targets[rows], -g[rows], 0.0)
            torch.mm(grad, w, out=gh[rows])
            if gw is not None:
                _add_product(gw, grad, h[rows])
            del grad  # or it lives beside the next chunk's logits
        return gh, gw.to(head.dtype) if gw is not None else None, None, None


def cross_entropy(
    h: Tensor,
    head: Tensor,
    targets: Tensor,
    weight: Tensor,
    z_loss: float = 0.0,
    gradient: Callable = eager_gradient,
    chunk: int = 0,
) -> tuple[Tensor, Tensor]:
    """``sum(weight * (nll + z_loss * log(Z)^2))`` and, without gradient, the plain sum of nll over rows of weight > 0
    (nats, fp32).

    h [n, dim]; head [vocab, dim], any dtype, cast to h's; targets [n] int64; weight [n] fp32 (put 1/count in it for a
    mean). ``gradient`` may be a compiled :func:`chunk_gradient`; ``chunk`` rows are worked on at once (0: the device's
    :data:`CHUNK`).
    """
    chunk = chunk or CHUNK.get(h.device.type, 4096)
    if not torch.is_grad_enabled():
        nll = -log_probs_now(h, head, targets, chunk)
        return (nll * weight).sum(), (nll * (weight != 0)).sum()
    return InForward.apply(
        h, head, chunk, lambda h, w, targets, weight: gradient(h, w, targets, weight, z_loss), targets, weight
    )


def log_probs(h: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target [n] fp32 (nats); differentiable, logits are made again in the backward pass."""
    chunk = CHUNK.get(h.device.type, 4096)
    return (
        _LogProbs.apply(h, head, targets, chunk) if torch.is_grad_enabled() else log_probs_now(h, head, targets, chunk)
    )


def log_probs_now(h: Tensor, head: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """:func:`log_probs` without gradient, in chunks of ``chunk`` rows."""
    w = head.to(h.dtype)
    parts = []
    for i in range(0, h.shape[0], chunk):
        logits = (h[i : i + chunk] @ w.t()).float()  # [chunk, vocab]
        parts.append(logits.gather(1, targets[i : i + chunk, None])[:, 0] - torch.logsumexp(logits, -1))
    return torch.cat(parts) if parts else torch.zeros(0, device=h.device)
