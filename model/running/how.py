"""How a worker runs: precision, engine, micro-batch, checkpoints. Nothing here is in a cache key; the config's
``resources`` say it for all workers of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints


@dataclass(frozen=True)
class How:
    """Where and how fast, not what: the weights are the same up to the rounding of the arithmetic chosen."""

    micro_batch: int = 0
    """Rows a rank computes at once; 0 chooses."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["plain", "ddp", "fsdp2", "deepspeed"] = "ddp"
    zero_stage: int = 1
    offload: bool = False
    fp8: bool = False
    """Multiply the matrices inside blocks in fp8 (GPU)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 makes one about every minute."""
    keep_checkpoints: int = 2
    threads: int = 0
    """Threads of a rank; 0 leaves it to torch."""
    log_every: int = 0
    """Steps between two records (0: each, on a GPU as many as the stage says)."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("dtype", "compile", "device", "engine"):
            value, allowed = getattr(self, name), get_args(hints[name])
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value}")
        for name, least in (("keep_checkpoints", 1), ("log_every", 0), ("micro_batch", 0), ("checkpoint_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.threads < 0:
            raise ValueError(f"threads must be at least 0, not {self.threads}")
        if not 0 <= self.zero_stage <= 3:
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, not {self.zero_stage}")
