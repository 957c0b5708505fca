"""DeepSpeed ZeRO 0-3 behind the engine's face, with our optimizer inside.

ZeRO 1 and 2 hand an optimizer one flat partition per group, ZeRO 3 one flat buffer of per-parameter partitions. Both
are told by :meth:`DeepSpeed.spans`, so the recipe (Muon included), the checkpoints and the resume on another number of
ranks are the same as without DeepSpeed; its own checkpoints can change the number of ranks only through an offline
conversion. DeepSpeed's compiled optimizers are not used: building them takes minutes and they are no faster than
torch's. It runs in fp32 with our bf16 casts, so its communication is fp32.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from model.objectives.base import Objective
from model.specs.train import TrainSpec
from model.training.engine import UNLIMITED, Engine, Span, fine, in_a_row, slices
from model.training.optim import MuonAdamW


class _Guarded(MuonAdamW):
    """Skips an update whose gradient norm is not fine. ZeRO 1 to 3 have clipped and give ``known`` its norm; ZeRO 0
    leaves both to us."""

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
                torch._foreach_mul_(grads, self.config.clip / (self.norm + 1e-6))  # pyright: ignore[reportPrivateImportUsage] - torch has no public name for it
        if fine(self.norm, self.limit):
            super().step()


class DeepSpeed(Engine):
    """An engine over ``deepspeed.initialize`` with a client optimizer."""

    # DeepSpeed says nothing of their types: they are of a dozen classes, by configuration, with attributes of their own
    engine: Any
    zero: Any

    def __init__(self, objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> None:
        sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]  # its autotuner would import that: 2.4 s a rank, for nothing
        import deepspeed

        # A helper for inference on CPUs; building it takes minutes and a C++ compiler.
        cast(Any, importlib.import_module("deepspeed.comm.torch")).build_shm_op = lambda: None
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        super().__init__(objective, spec, device, rank, world)
        self.stage = spec.how.zero_stage
        self.optimizer = _Guarded([dict(g) for g in self.groups], spec.optim, self.updates)
        self.engine, _, _, _ = deepspeed.initialize(
            model=objective, optimizer=self.optimizer, config=self._config(), dist_init_required=False
        )
        self.zero = self.engine.optimizer
        self.optimizer.known = (
            (lambda: self.zero._global_grad_norm) if self.stage else None
        )  # public only once the step is over

    def _config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "round_robin_gradients": False}
        if self.stage == 3:
            zero |= {"sub_group_size": 1 << 40, "stage3_param_persistence_threshold": 0}  # one flat buffer a group
        if self.spec.how.offload and self.stage:
            zero["offload_optimizer"] = {"device": "cpu"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.spec.optim.clip if self.stage else 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 40,
        }

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
        return torch.as_tensor(
            self.engine.get_global_grad_norm() if self.stage else self.optimizer.norm, dtype=torch.float32
        )

    @property
    def replicated(self) -> bool:
        return not self.stage

    def local(self, group: dict[str, Any]) -> list[Tensor]:
        return [self.zero.fp32_partitioned_groups_flat[group["index"]]] if self.stage == 3 else super().local(group)

    def spans(self, group: dict[str, Any], rank: int) -> list[Span]:
        sizes = [n for _, n in in_a_row(group["shapes"])]
        if not self.stage:
            return [Span(i, 0, i, 0, n) for i, n in enumerate(sizes)]
        if (
            self.stage == 3
        ):  # each parameter is cut in equal parts; a rank's lie in a row, with padding after the last rank's
            each = [-(-n // self.world) for n in sizes]
            begins = [min(rank * e, n) for e, n in zip(each, sizes, strict=True)]
            places = list(itertools.accumulate(each, initial=0))[:-1]  # the last sum is nobody's place
            return [
                Span(i, begin, 0, at, min(e, n - begin))
                for i, (at, e, begin, n) in enumerate(zip(places, each, begins, sizes, strict=True))
            ]
        length, pieces = self.local(group)[0].numel(), []  # the group lies in a row and is cut in equal parts
        for i, (at, n) in enumerate(zip(self.zero.round_robin_bit16_offsets[group["index"]], sizes, strict=True)):
            begin, end = max(at, rank * length), min(at + n, (rank + 1) * length)
            if begin < end:
                pieces.append(Span(i, begin - at, 0, begin - rank * length, end - begin))
        return pieces

    def loaded(self, applied: int) -> None:
        super().loaded(applied)
        if self.stage == 3:
            for flat, used in zip(
                self.zero.fp32_partitioned_groups_flat, self.zero.fp16_partitioned_groups_flat, strict=True
            ):
                used.data.copy_(flat.data)
        elif self.stage:
            params = dict(self.objective.lm.named_parameters())
            for group in self.groups:
                for chosen in slices(group["shapes"]):
                    for i, full in zip(chosen, self.whole(group, self.local(group), chosen), strict=True):
                        params[group["names"][i]].data.copy_(full)
