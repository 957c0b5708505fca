"""DeepSpeed ZeRO 0-3 behind the engine's face, with our optimizer inside.

ZeRO 1 and 2 hand an optimizer one flat partition per group, ZeRO 3 one flat buffer of per-parameter partitions. Both
are told apart here by :meth:`whole` and :meth:`cut`, so the recipe (Muon included), the checkpoints and the resume on
another number of ranks are the same as without DeepSpeed; its own checkpoints can change the number of ranks only
through an offline conversion. DeepSpeed's compiled optimizers are not used: building them takes minutes and they are no faster
than torch's. It runs in fp32 with our bf16 casts, so its communication is fp32.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.config import TrainSpec
from model.engine import UNLIMITED, Engine, fine
from model.objective import Objective
from model.optim import MuonAdamW, gather


class _Guarded(MuonAdamW):
    """Skips an update whose gradient norm is not fine. ZeRO 1 to 3 have clipped and give ``known`` its norm; ZeRO 0 leaves both to us."""

    norm: Tensor = torch.zeros(())
    limit: Tensor = UNLIMITED
    known: Callable[[], Any] | None = None

    def step(self, closure: Any = None) -> None:
        if self.known is not None:
            self.norm = torch.as_tensor(self.known(), dtype=torch.float32)
        else:
            grads = [p.grad for g in self.param_groups for p in g["params"]]
            self.norm = torch.stack([torch.linalg.vector_norm(g) for g in grads]).norm()
            if self.config.clip and self.norm > self.config.clip:
                torch._foreach_mul_(grads, self.config.clip / (self.norm + 1e-6))
        if fine(self.norm, self.limit):
            super().step()


class DeepSpeed(Engine):
    """An engine over ``deepspeed.initialize`` with a client optimizer."""

    def __init__(self, objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> None:
        import deepspeed

        # A helper for inference on CPUs; building it takes minutes and a C++ compiler.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        super().__init__(objective, spec, device, rank, world)
        self.stage = spec.zero_stage
        self.optimizer = _Guarded([dict(g) for g in self.groups], spec.optim, self.pieces)
        self.engine, _, _, _ = deepspeed.initialize(model=objective, optimizer=self.optimizer, config=self._config(), dist_init_required=False)
        self.zero = self.engine.optimizer
        self.optimizer.known = (lambda: self.zero._global_grad_norm) if self.stage else None  # public only once the step is over

    def _config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "round_robin_gradients": False}
        if self.stage == 3:
            zero |= {"sub_group_size": 1 << 40, "stage3_param_persistence_threshold": 0}  # one flat buffer a group
        if self.spec.offload and self.stage:
            zero["offload_optimizer"] = {"device": "cpu"}
        return {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": self.spec.optim.clip if self.stage else 0.0,
                "zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "steps_per_print": 1 << 40}

    def __call__(self, batch: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return self.engine(batch, **options)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world, scale_wrt_gas=False)  # it averages over ranks, ours is a sum
        if not last:
            self.engine.step()  # only counts the micro-batch

    def step(self, factor: float, limit: Tensor = UNLIMITED) -> Tensor:
        self.rates(factor)
        self.optimizer.limit = limit
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm() if self.stage else self.optimizer.norm, dtype=torch.float32)

    def local(self, index: int) -> list[Tensor]:
        if self.stage == 3:
            return [self.zero.fp32_partitioned_groups_flat[index]]
        return self.optimizer.param_groups[index]["params"]

    def whole(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        if not self.stage:
            return tensors
        mine = tensors[0].detach().contiguous().view(-1)
        parts = torch.empty(self.world, mine.numel(), dtype=mine.dtype, device=mine.device)
        gather(parts.view(-1), mine)
        cut = parts.reshape(-1)
        return [(parts[:, at:at + n].reshape(-1)[:size] if self.stage == 3 else cut[at:at + size]).view(shape) for at, n, size, shape in self._layout(group)]

    def cut(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        if not self.stage:
            return tensors
        like = self.local(group["index"])[0]
        parts = torch.zeros(self.world, like.numel(), dtype=tensors[0].dtype, device=tensors[0].device)
        for t, (at, n, size, _) in zip(tensors, self._layout(group), strict=True):
            if self.stage == 3:
                parts[:, at:at + n] = torch.nn.functional.pad(t.reshape(-1), (0, n * self.world - size)).view(self.world, n)
            else:
                parts.view(-1)[at:at + size] = t.reshape(-1)
        return [parts[self.rank].to(like.device)]

    def _layout(self, group: dict[str, Any]) -> list[tuple[int, int, int, tuple[int, ...]]]:
        """(offset, length, elements, shape) of each parameter: in the whole flat group (ZeRO 1, 2), or in a rank's buffer (ZeRO 3)."""
        sizes = [torch.Size(shape).numel() for shape in group["shapes"]]
        if self.stage == 3:
            lengths = [-(-size // self.world) for size in sizes]
            offsets = [sum(lengths[:i]) for i in range(len(lengths))]
        else:
            lengths, offsets = sizes, self.zero.round_robin_bit16_offsets[group["index"]]
        return list(zip(offsets, lengths, sizes, group["shapes"], strict=True))

    def loaded(self, state: dict[str, Tensor]) -> None:
        if self.stage == 3:
            for flat, used in zip(self.zero.fp32_partitioned_groups_flat, self.zero.fp16_partitioned_groups_flat, strict=True):
                used.data.copy_(flat.data)
        else:
            for name, p in self.objective.lm.named_parameters():
                p.data.copy_(state[f"param:{name}"])
