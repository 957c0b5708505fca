"""Log-probabilities under the distribution that answers are sampled from, and its entropy, without holding all logits.

Where tokens are drawn at a temperature, or from the most likely ones alone, the policy is that distribution and not the
model's plain one: a trainer that scores it otherwise corrects for a difference that is not there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.training import loss


def kept(logits: Tensor, targets: Tensor, top_k: int, top_p: float) -> Tensor | None:
    """Which tokens [n, vocab] sampling leaves of ``logits`` [n, vocab] (already over the temperature); null: all.

    The target stays in any case: it was sampled, if by weights that were a rounding away.
    """
    if not top_k and top_p >= 1:
        return None
    values, order = torch.sort(logits, descending=True, stable=True)
    if top_k:
        values[:, top_k:] = float("-inf")
    weights = torch.softmax(values, -1)
    stay = (weights.cumsum(-1) - weights < top_p) & (values > float("-inf"))
    mask = torch.zeros_like(stay).scatter_(1, order, stay)
    return mask.scatter_(1, targets[:, None], True)


def _scaled(h: Tensor, w: Tensor, targets: Tensor, how: tuple[float, int, float]) -> Tensor:
    """Logits [n, vocab] fp32 of what is sampled from: over the temperature, minus infinity where nothing is drawn."""
    temperature, top_k, top_p = how
    logits = (h @ w.t()).float()
    if temperature != 1:
        logits /= temperature
    mask = kept(logits, targets, top_k, top_p)
    return logits if mask is None else logits.masked_fill_(~mask, float("-inf"))


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, head: Tensor, targets: Tensor, how: tuple[float, int, float], chunk: int):
        ctx.save_for_backward(h, head, targets)
        ctx.how, ctx.chunk = how, chunk
        logp, entropy = now(h, head, targets, how, chunk)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx, g: Tensor, _: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride] - torch's is variadic
        h, head, targets = ctx.saved_tensors
        w, learns = head.to(h.dtype), ctx.needs_input_grad[1]
        gh, gw = torch.empty_like(h), torch.zeros_like(head, dtype=torch.float32) if learns else None
        for i in range(0, h.shape[0], ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            soft = torch.softmax(_scaled(h[rows], w, targets[rows], ctx.how), -1)
            grad = steepness(soft, targets[rows], g[rows], ctx.how[0]).to(h.dtype)
            torch.mm(grad, w, out=gh[rows])
            if gw is not None:
                gw += grad.t() @ h[rows]
        return gh, gw.to(head.dtype) if gw is not None else None, None, None, None


def policy_of(h: Tensor, w: Tensor, targets: Tensor, how: tuple[float, int, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each target [n], entropy [n] and all probabilities [n, vocab], fp32, of one chunk of rows
    ``h`` [n, dim] under the head ``w`` [vocab, dim] of the same dtype."""
    lp = torch.log_softmax(_scaled(h, w, targets, how), -1)
    soft = lp.exp()
    logp = lp.gather(1, targets[:, None])[:, 0]
    return logp, -(soft * lp.nan_to_num_(neginf=0.0)).sum(-1), soft


def steepness(soft: Tensor, targets: Tensor, slope: Tensor, temperature: float) -> Tensor:
    """The gradient of the logits [n, vocab] for that of the log-probabilities ``slope`` [n]: one at the target less the
    probabilities ``soft`` [n, vocab], which are written over."""
    slope = slope / temperature
    return soft.mul_(-slope[:, None]).scatter_add_(1, targets[:, None], slope[:, None])


def now(h: Tensor, head: Tensor, targets: Tensor, how: tuple[float, int, float], chunk: int) -> tuple[Tensor, Tensor]:
    """:func:`log_probs` without gradient, in chunks of ``chunk`` rows."""
    w = head.to(h.dtype)
    logp, entropy = [h.new_zeros(0, dtype=torch.float32)], [h.new_zeros(0, dtype=torch.float32)]
    for i in range(0, h.shape[0], chunk):
        own, spread, _ = policy_of(h[i : i + chunk], w, targets[i : i + chunk], how)
        logp.append(own)
        entropy.append(spread)
    return torch.cat(logp), torch.cat(entropy)


def log_probs(
    h: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target [n] (nats, fp32, differentiable) and the entropy [n] (nats, without gradient) of
    the distribution that ``temperature``, ``top_k`` (0: all) and ``top_p`` (1: all) leave.

    h [n, dim]; head [vocab, dim], cast to h's dtype; targets [n] int64. Logits are made again in the backward pass.
    """
    how, chunk = (temperature, top_k, top_p), loss.CHUNK.get(h.device.type, 4096)
    if not torch.is_grad_enabled():
        return now(h, head, targets, how, chunk)
    return _Sampled.apply(h, head, targets, how, chunk)
