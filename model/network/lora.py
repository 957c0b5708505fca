"""LoRA (Hu et al. 2021, arXiv:2106.09685): frozen matrices inside blocks, each with a trained product of two thin ones
beside it.

The model that comes out is merged, so that everything after it sees ordinary weights. The adapter is kept as well, in
the form that Hugging Face's ``peft`` loads.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from model.network.transformer import Linear, Transformer
from model.running.files import replacing, write_json
from model.specs.tune import LoraConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {"all": (*ATTENTION, "gate_proj", "up_proj", "down_proj"), "attention": ATTENTION}


class LoraLinear(Linear):
    """A frozen matrix [outputs, inputs] plus ``scale * B A``: A [rank, inputs] and B [outputs, rank], no bias."""

    lora_A: Linear
    lora_B: Linear
    scale: float

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype)) + self.lora_B(self.lora_A(input)) * self.scale


def add_lora(model: Transformer, config: LoraConfig, seed: int) -> int:
    """Freeze ``model`` and give its target matrices adapters; how many. A is random by ``seed``, B zero, so that
    nothing changes yet.

    A is uniform in ±1/sqrt(inputs), as in the authors' code and peft. A mixture's experts and router have none.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    found = [
        m
        for name, m in model.model.layers.named_modules()
        if type(m) is Linear and name.rpartition(".")[2] in TARGETS[config.targets]
    ]
    for module in found:
        outputs, inputs = module.weight.shape
        module.__class__ = LoraLinear
        assert isinstance(module, LoraLinear)  # as of now
        module.scale = config.scale
        module.lora_A, module.lora_B = Linear(inputs, config.rank), Linear(config.rank, outputs)
        with torch.no_grad():
            module.lora_A.weight.copy_((torch.rand(config.rank, inputs, generator=generator) * 2 - 1) * inputs**-0.5)
            module.lora_B.weight.zero_()
    return len(found)


def shrink_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen matrices in the dtype they are multiplied in, which every use would cast them to anyway."""
    for p in model.parameters():
        if not p.requires_grad and p.ndim > 1:
            p.data = p.data.to(dtype)


def merge(model: Transformer, adapter: dict[str, Tensor], config: LoraConfig) -> None:
    """Add the adapter (names and tensors as :func:`add_lora` made them) to the matrices of ``model``, which has none
    itself."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, b in adapter.items():
            if name.endswith(".lora_B.weight"):
                stem = name.removesuffix(".lora_B.weight")
                own[f"{stem}.weight"].add_(config.scale * (b @ adapter[f"{stem}.lora_A.weight"]))


def save_adapter(adapter: dict[str, Tensor], config: LoraConfig, path: Path) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` as ``peft.PeftModel.from_pretrained(base, path)``
    reads them."""
    tensors = {f"base_model.model.{name}": value.contiguous() for name, value in sorted(adapter.items())}
    with replacing(path / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.scale * config.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-3] for name in adapter}),
        "base_model_name_or_path": "",
        "inference_mode": True,
    }
    write_json(path / "adapter_config.json", values, indent=2)
