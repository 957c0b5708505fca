"""Fine-tuning: a :class:`Trainer` over packed sequences that may train adapters (LoRA) instead of all weights."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from model.network.lora import add_lora, merge, save_adapter, shrink_frozen
from model.network.transformer import Transformer
from model.running.setup import Choices
from model.specs.shape import ModelConfig
from model.specs.tune import TuneSpec
from model.training.trainer import Trainer, initial_model

Tuned = TypeVar("Tuned", bound=TuneSpec)


class Tuner(Trainer[Tuned]):
    """What SFT and DPO share."""

    def adapt(self, model: Transformer, choices: Choices) -> None:
        """Freeze the model and add adapters, when the spec gives them a rank."""
        spec, ranks = self.spec, self.ranks
        if not spec.lora.rank:
            super().adapt(model, choices)
            return
        if spec.how.fp8:
            ranks.say("fp8 is left out with LoRA")
        count = add_lora(model, spec.lora, spec.seed)
        if spec.how.engine in ("plain", "ddp"):  # FSDP2 and DeepSpeed want one dtype for all
            shrink_frozen(model, getattr(torch, choices.dtype))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        ranks.say(f"LoRA of rank {spec.lora.rank} on {count} matrices: {trained / 1e6:.2f}M parameters are trained")

    def merged(self, model: Transformer, config: ModelConfig, state: dict[str, Tensor]) -> Transformer:
        """The adapter beside the model, and the frozen weights as they were read (however the engine holds them) with
        the adapter merged in."""
        if not self.spec.lora.rank:
            return super().merged(model, config, state)
        save_adapter(state, self.spec.lora, Path(self.spec.out) / "adapter")
        whole = initial_model(self.spec, config)
        merge(whole, state, self.spec.lora)
        state.clear()
        return whole
