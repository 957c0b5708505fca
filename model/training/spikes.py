"""Which updates are left out: those whose gradient is not finite, or far larger than the recent ones.

A batch that does not belong can undo thousands of steps. Its gradient norm gives it away before the weights have moved:
an update is skipped when its norm lies ``sigmas`` standard deviations above the mean of the last :data:`WINDOW` norms
(the skip-step optimizer of OLMo, Team OLMo 2025, arXiv:2501.00656). Skipped norms count as recent ones too, so that a
lasting change of level is followed and not fought. Everything lives on the engine's device: nothing here makes a GPU
wait.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WINDOW, LEAST = 128, 32
"""Norms that are remembered, and how many there must be before one is judged."""


class SpikeGuard:
    """The recent gradient norms of one run; ``sigmas`` 0 skips only what is not finite."""

    def __init__(self, sigmas: float, device: torch.device) -> None:
        self.sigmas, self.steps = sigmas, 0
        self.norms = torch.full((WINDOW,), float("nan"), device=device)
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # not finite, spikes, not finite in a row

    def limit(self) -> Tensor:
        """Largest norm of the coming update that is applied (scalar; infinite while there is too little to compare
        with)."""
        known = self.norms[torch.isfinite(self.norms)] if self.norms.device.type == "cpu" else self.norms
        if not self.sigmas or min(self.steps, len(known)) < LEAST:
            return torch.full((), float("inf"), device=self.norms.device)
        mean = known.nanmean()
        return mean + self.sigmas * (known - mean).square().nanmean().sqrt()

    def saw(self, norm: Tensor, limit: Tensor) -> None:
        """Remember an update's norm and whether it was above ``limit``."""
        norm = norm.to(self.norms.device)
        finite = torch.isfinite(norm)
        self.norms[self.steps % WINDOW] = torch.where(finite, norm, float("nan"))
        self.steps += 1
        self.counts[0] += ~finite
        self.counts[1] += finite & (norm > limit)
        self.counts[2] = torch.where(finite, 0, self.counts[2] + 1)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {
            "norms": [None if value != value else value for value in self.norms.tolist()],
            "steps": self.steps,
            "counts": self.counts.tolist(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` gave."""
        self.norms.copy_(torch.tensor([float("nan") if value is None else value for value in state["norms"]]))
        self.counts.copy_(torch.tensor(state["counts"]))
        self.steps = state["steps"]
