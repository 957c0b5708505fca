"""Muon and AdamW in one optimizer that works on whole tensors, flat buffers and shards alike.

Muon (Jordan 2024, kellerjordan.github.io/posts/muon) takes a gradient's momentum to the nearest semi-orthogonal matrix
by five Newton-Schulz steps; scaled by ``0.2 * sqrt(max(rows, columns))`` an update has the size of AdamW's
(Moonlight, arXiv:2502.16982), so both share learning rates. Matrices of equal shape go through Newton-Schulz as one
batched product, in the run's compute type: bf16 is exact enough, and a CPU without units for it takes 26 times as long
as in fp32. Only that step needs whole matrices, so the engine that holds them in pieces gives ``orthogonalize``;
momentum and weight decay work on whatever piece there is. Equal to ``torch.optim.Muon`` by test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from model.specs.train import OptimConfig

Updates = Callable[[dict[str, Any], list[Tensor]], list[Tensor]]
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # maximises the slope at zero; singular values end in about [0.7, 1.2]
ROUNDS = 5


def newton_schulz(g: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: [n, rows, columns] in any dtype to the same shape in ``dtype``."""
    a, b, c = NEWTON_SCHULZ
    x = g.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the gram matrix is the smaller one where rows are the shorter side
        x = x.mT.contiguous()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # singular values at most 1, or the rounds diverge
    for _ in range(ROUNDS):
        gram = x @ x.mT  # [n, rows, rows]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_scale(shape: Iterable[int]) -> float:
    """What makes the root mean square of an orthogonal update that of AdamW (about 0.2)."""
    return 0.2 * max(tuple(shape)[-2:]) ** 0.5


def orthogonalize(matrices: list[Tensor], dtype: torch.dtype, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Scaled orthogonal updates of matrices ([rows, columns], or [n, rows, columns] for experts) in ``dtype``, batched
    by shape.

    With ``world`` > 1 each rank computes its share of every batch and all gather the rest.
    """
    out: list[Tensor] = [torch.empty(0)] * len(matrices)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, m in enumerate(matrices):
        shapes.setdefault(tuple(m.shape[-2:]), []).append(i)
    for shape, members in shapes.items():
        stack = torch.cat([matrices[i].reshape(-1, *shape) for i in members])  # [n, rows, columns]
        done = _share(stack, dtype, rank, world) * muon_scale(shape)
        counts = [matrices[i].numel() // (shape[0] * shape[1]) for i in members]  # experts are many in one
        for i, part in zip(members, done.split(counts), strict=True):
            out[i] = part.view_as(matrices[i])
    return out


def _share(stack: Tensor, dtype: torch.dtype, rank: int, world: int) -> Tensor:
    """Newton-Schulz of ``stack`` [n, rows, columns], the n shared out over the ranks."""
    if world == 1:
        return newton_schulz(stack, dtype)
    size = -(-stack.shape[0] // world)
    mine = stack[rank * size : (rank + 1) * size]
    # ranks past the end have nothing to do, and send zeros: a collective wants equal sizes
    part = torch.zeros((size, *stack.shape[1:]), dtype=dtype, device=stack.device)
    if len(mine):
        part[: len(mine)] = newton_schulz(mine, dtype)
    whole = torch.empty((world * size, *stack.shape[1:]), dtype=dtype, device=stack.device)
    gather(whole, part)
    return whole[: stack.shape[0]]


def gather(whole: Tensor, part: Tensor) -> None:
    """Fill ``whole`` with every rank's ``part``, by the name that this torch has for it."""
    (getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor)(whole, part)


class MuonAdamW(torch.optim.Optimizer):
    """Groups of kind "muon" and "adamw" (made by :func:`groups`); tensors may be flat pieces.

    ``updates(group, tensors) -> tensors`` gets the Nesterov momenta of a muon group in the form the parameters have and
    returns the orthogonal updates in that form.
    """

    def __init__(self, param_groups: list[dict[str, Any]], config: OptimConfig, updates: Updates) -> None:
        super().__init__(param_groups, {"lr": config.lr})
        self.config, self.updates = config, updates

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - takes no closure
        """One update from ``.grad``; parameters without one are left alone."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["kind"] == "muon" else self._adamw)(group, params)

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta, lr = self.config.momentum, group["lr"]
        grads = _grads(params)
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - beta)  # pyright: ignore[reportPrivateImportUsage] - no public name
        # Nesterov: the gradient counts once more, beside its share of the momentum
        updates = self.updates(group, list(torch._foreach_lerp(grads, momenta, beta)))  # pyright: ignore[reportPrivateImportUsage] - as above
        for p, update in zip(params, updates, strict=True):
            # decay is decoupled (AdamW) and of the rate, as in the other groups
            p.mul_(1 - lr * group["weight_decay"])
            p.sub_(update * lr)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if "exp_avg" not in self.state[p]:
                self.state[p] |= {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        adamw(
            params,
            _grads(params),
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self.config.eps,
            maximize=False,
        )


def _grads(params: list[Tensor]) -> list[Tensor]:
    """Gradients of parameters that have one, as all have that :meth:`MuonAdamW.step` passes on."""
    return cast(list[Tensor], [p.grad for p in params])


def groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """Trained parameters in groups {kind, params, names, shapes, base_lr, lr, weight_decay}; equal shapes side by side,
    empty groups left out.

    Matrices inside blocks are decayed and go to Muon when that is chosen; embeddings, head, norms and routers never
    are, nor adapters, whose own matrices mean nothing alone.
    """
    inner: list[tuple[str, nn.Parameter]] = []
    outer: list[tuple[str, nn.Parameter]] = []
    adapters: list[tuple[str, nn.Parameter]] = []
    for name, p in named:
        if not p.requires_grad:
            continue
        if ".lora_" in name:
            adapters.append((name, p))
            continue
        matrix = (
            p.ndim >= 2
            and "embed_tokens" not in name
            and "lm_head" not in name
            and not name.endswith("mlp.gate.weight")
        )
        (inner if matrix else outer).append((name, p))
    inner.sort(key=lambda item: tuple(item[1].shape))  # stable: by shape, then in the model's order
    made = []
    for kind, members, lr, decay in (
        ("muon" if config.name == "muon" else "adamw", inner, config.lr, config.weight_decay),
        ("adamw", outer, config.embed_lr or config.lr, 0.0),
        ("adamw", adapters, config.lr, 0.0),
    ):
        if members:
            made.append(
                {
                    "kind": kind,
                    "params": [p for _, p in members],
                    "names": [n for n, _ in members],
                    "shapes": [tuple(p.shape) for _, p in members],
                    "base_lr": lr,
                    "lr": lr,
                    "weight_decay": decay,
                }
            )
    return made
