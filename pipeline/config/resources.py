"""Where and how a run executes. None of this is in a cache key: the same stage on other hardware is the same stage."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any, Literal

from pydantic import Field

from model.running.how import How
from pipeline.config.base import Section


class Resources(Section):
    """Processes, launcher and precision of a run; recorded beside each artifact, never part of its identity."""

    workers: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        description="data preparation processes (default: the cores this process may use)",
    )
    engine: Literal["local", "ray"] = Field(
        default="local", description="where data shards and training run: on this machine, or on a Ray cluster"
    )
    nproc: int = Field(default=1, ge=1, description="training processes (ranks) on this node")
    nnodes: int = Field(default=1, ge=1, description="machines that train together (engine = ray)")
    place_seconds: int = Field(
        default=600,
        ge=0,
        description="how long a stage waits for room on the Ray cluster before it fails; 0 waits for ever",
    )
    hostfile: str = Field(
        default="",
        description="launcher = deepspeed: host file of nodes that its launcher reaches by ssh, instead of Ray",
    )
    launcher: Literal["torchrun", "deepspeed"] = Field(
        default="torchrun", description="what starts the training processes"
    )
    parallel: Literal["ddp", "fsdp2"] = Field(default="ddp", description="how torchrun ranks share the model")
    zero_stage: int = Field(default=1, ge=0, le=3, description="DeepSpeed ZeRO stage (launcher = deepspeed)")
    offload: bool = Field(default=False, description="DeepSpeed: keep optimizer state in CPU memory")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes CUDA when there is a GPU")
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="compute type; auto is bf16 where the hardware multiplies it natively, else fp32"
    )
    fp8: bool = Field(
        default=False,
        description=(
            "multiply the matrices inside blocks in fp8: GPUs from Ada and Hopper on, wide models (about 1B parameters"
            " and up)"
        ),
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile; auto only where the run is long enough to earn it back"
    )
    micro_batch: int = Field(
        default=0, ge=0, description="sequences a rank computes at once; 0 fits it to memory (the global batch stays)"
    )
    checkpointing: bool = Field(default=False, description="recompute activations in the backward pass to save memory")
    threads: int = Field(default=0, ge=0, description="CPU threads a rank; 0 shares the cores evenly")
    checkpoint_every: int = Field(
        default=0, ge=0, description="steps between checkpoints; 0 chooses about one a minute"
    )
    no_progress_seconds: int = Field(
        default=900, ge=10, description="a worker silent for so long is ended and the stage fails, resumable"
    )
    wall_seconds: int = Field(default=0, ge=0, description="longest time a training stage may take; 0 is no limit")

    def how(self) -> How:
        """The part that training workers are told."""
        same: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(How) if f.name in type(self).model_fields}
        same["engine"] = "deepspeed" if self.launcher == "deepspeed" else self.parallel
        return How(**same)
