"""How ranks share one model: replicas, FSDP2, DeepSpeed, all behind the same few methods.

An engine owns the optimizer and its parameter groups. A group's tensors exist in the engine's own form (one flat
buffer, shards, partitions); :meth:`Engine.whole` makes them full matrices and :meth:`Engine.cut` brings full
matrices back to that form. With just these two, Newton-Schulz, checkpoints and resuming on another number of ranks, or
another engine, are written once: a checkpoint always holds full tensors by name. That costs host memory for one copy of
the optimizer state on rank 0 (12 bytes a parameter), the limit on model size here.

Gradients are summed by us and not by DistributedDataParallel: its buckets are laid out anew after the first step, so a
resumed run would add in another order, and it hides communication that is under 2 % of a step at these sizes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.config import TrainSpec
from model.objective import Objective
from model.optim import MuonAdamW, groups, orthogonalize

State = dict[str, Tensor]
UNLIMITED = torch.tensor(float("inf"))


def fine(norm: Tensor, limit: Tensor) -> Tensor:
    """Whether an update with this gradient norm is applied (scalar bool)."""
    return torch.isfinite(norm) & (norm <= limit.to(norm.device))


class Engine:
    """Base: a process group of ``world`` ranks that all run the same steps. Subclasses say in what form tensors live.

    ``independent``: ranks meet only in :meth:`step`, so that one may repeat its micro-batches alone.
    """

    independent = False

    def __init__(self, objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> None:
        self.objective, self.spec, self.device, self.rank, self.world = objective, spec, device, rank, world
        self.groups = [{**g, "index": i} for i, g in enumerate(groups(objective.lm.named_parameters(), spec.optim))]
        self.optimizer: Any = None

    def __call__(self, batch: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """The objective's loss and sums for a micro-batch."""
        return self.objective(batch, **options)

    def clear(self) -> None:
        """Forget the gradient of the current update."""
        self.objective.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient; ``last`` marks the update's final one."""
        loss.backward()

    def step(self, factor: float, limit: Tensor = UNLIMITED) -> Tensor:
        """Update with rates times ``factor``; the gradient norm before clipping. A norm above ``limit``, or not finite, changes nothing."""
        raise NotImplementedError

    def whole(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        """Tensors in this engine's form as full tensors of ``group["shapes"]``. Collective."""
        raise NotImplementedError

    def cut(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        """The inverse of :meth:`whole`; local."""
        raise NotImplementedError

    def pieces(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        """Orthogonal updates for the optimizer, which sees only pieces."""
        return self.cut(group, orthogonalize(self.whole(group, tensors), self.rank, self.world))

    def rates(self, factor: float) -> None:
        """Set every group's rate for the coming step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def local(self, index: int) -> list[Tensor]:
        """What the optimizer holds as parameters of group ``index``."""
        return self.optimizer.param_groups[index]["params"]

    def loaded(self, state: State) -> None:
        """Called after :meth:`load` wrote the optimizer's parameters: bring copies of them up to date."""

    def state(self) -> State:
        """Full tensors by name on the CPU: ``param:NAME`` and ``KEY:NAME`` for optimizer state. Collective; may alias live memory."""
        found: State = {}
        for index, group in enumerate(self.groups):
            params = self.local(index)
            found |= self._named("param", group, params)
            states = [self.optimizer.state.get(p, {}) for p in params]
            for key in sorted(states[0]):
                if states[0][key].numel() == 1 and key == "step":
                    found |= {f"step:{name}": states[0][key].detach().cpu() for name in group["names"]}
                else:
                    found |= self._named(key, group, [s[key] for s in states])
        return found

    def load(self, state: State) -> None:
        """Take what :meth:`state` gave, on any number of ranks and by any engine."""
        for index, group in enumerate(self.groups):
            names, params = group["names"], self.local(index)
            with torch.no_grad():
                for p, value in zip(params, self._cut(group, "param", state), strict=True):
                    p.copy_(value)
            keys = sorted({key.partition(":")[0] for key in state if key.partition(":")[2] == names[0]} - {"param", "step"})
            for key in keys:
                for p, value in zip(params, self._cut(group, key, state), strict=True):
                    self.optimizer.state[p][key] = value.to(p.device).clone()
            if f"step:{names[0]}" in state:
                for p in params:
                    self.optimizer.state[p]["step"] = state[f"step:{names[0]}"].to(p.device).clone()
        self.loaded(state)

    def _named(self, key: str, group: dict[str, Any], tensors: list[Tensor]) -> State:
        full = self.whole(group, [t.detach() for t in tensors])
        return {f"{key}:{name}": value.cpu() for name, value in zip(group["names"], full, strict=True)}

    def _cut(self, group: dict[str, Any], key: str, state: State) -> list[Tensor]:
        return self.cut(group, [state[f"{key}:{name}"].to(self.device) for name in group["names"]])


class Replicas(Engine):
    """Every rank holds the whole model in a few flat fp32 buffers; gradients are summed once per update."""

    independent = True

    def __init__(self, objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> None:
        super().__init__(objective, spec, device, rank, world)
        sizes = [sum(p.numel() for p in g["params"]) for g in self.groups]
        self.grad = torch.zeros(sum(sizes), device=device)
        flat_groups, begin = [], 0
        for group, size in zip(self.groups, sizes, strict=True):
            flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in group["params"]]))
            flat.grad = self.grad[begin:begin + size]
            at = 0
            for p in group["params"]:
                p.data = flat.data[at:at + p.numel()].view_as(p)
                p.grad = flat.grad[at:at + p.numel()].view_as(p)
                at += p.numel()
            begin += size
            flat_groups.append({**group, "params": [flat]})
        self.optimizer = MuonAdamW(flat_groups, spec.optim, self.pieces)

    def whole(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        parts = tensors[0].split([torch.Size(shape).numel() for shape in group["shapes"]])
        return [part.view(shape) for part, shape in zip(parts, group["shapes"], strict=True)]

    def cut(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat([t.reshape(-1) for t in tensors])]

    def clear(self) -> None:
        self.grad.zero_()

    def step(self, factor: float, limit: Tensor = UNLIMITED) -> Tensor:
        if self.world > 1:
            dist.all_reduce(self.grad)
        norm = torch.linalg.vector_norm(self.grad)
        self.rates(factor)
        if self.device.type == "cpu":
            if not fine(norm, limit):
                self.grad.zero_()
                return norm
            if self.spec.optim.clip and norm > self.spec.optim.clip:
                self.grad.mul_(self.spec.optim.clip / (norm + 1e-6))
        else:
            self._clip_without_waiting(norm, limit)
        self.optimizer.step()
        self.grad.zero_()
        return norm

    def _clip_without_waiting(self, norm: Tensor, limit: Tensor) -> None:
        """On a GPU nothing may read ``norm`` on the host: a bad gradient becomes zero and its rates too, so weights stay."""
        good = fine(norm, limit).float()
        torch.nan_to_num_(self.grad, 0.0, 0.0, 0.0)
        clip = self.spec.optim.clip or float("inf")
        self.grad.mul_(good * (clip / (norm + 1e-6)).clamp(max=1.0).nan_to_num(0.0))
        for group in self.optimizer.param_groups:
            group["lr"] = good * group["lr"]


class Fsdp(Engine):
    """FSDP2: every block's parameters, gradients and optimizer state are sharded over ranks by their first dimension."""

    def __init__(self, objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(objective, spec, device, rank, world)
        mesh = init_device_mesh(device.type, (world,))
        half = device.type == "cuda" and objective.lm.compute_dtype == torch.bfloat16
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in objective.lm.model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(objective, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self.sharded = dict(objective.lm.named_parameters())
        flat_groups = [{**g, "params": [nn.Parameter(self.sharded[n].to_local().detach()) for n in g["names"]]} for g in self.groups]
        self.optimizer = MuonAdamW(flat_groups, spec.optim, self.pieces)

    def whole(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        from torch.distributed.tensor import DTensor

        full = []
        for name, shape, t in zip(group["names"], group["shapes"], tensors, strict=True):
            like = self.sharded[name]
            full.append(DTensor.from_local(t, like.device_mesh, like.placements, shape=torch.Size(shape), stride=like.stride()).full_tensor())
        return full

    def cut(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        out = []
        for t in tensors:
            parts = t.chunk(self.world)
            out.append((parts[self.rank] if self.rank < len(parts) else t[:0]).contiguous())
        return out

    def backward(self, loss: Tensor, last: bool) -> None:
        self.objective.set_requires_gradient_sync(last)
        (loss * self.world).backward()  # FSDP2 averages over ranks, ours is a sum

    def step(self, factor: float, limit: Tensor = UNLIMITED) -> Tensor:
        square = torch.zeros((), device=self.device)
        for group in self.optimizer.param_groups:
            for name, p in zip(group["names"], group["params"], strict=True):
                p.grad = self.sharded[name].grad.to_local()
                square += p.grad.pow(2).sum()
        dist.all_reduce(square)
        norm = square.sqrt()
        self.rates(factor)
        if fine(norm, limit):
            if self.spec.optim.clip and norm > self.spec.optim.clip:
                torch._foreach_mul_([p.grad for g in self.optimizer.param_groups for p in g["params"]], self.spec.optim.clip / (norm + 1e-6))
            self.optimizer.step()
        self.objective.zero_grad(set_to_none=True)
        return norm


def make_engine(objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> Engine:
    """The engine that ``spec.engine`` names; one rank alone needs no sharing, except that DeepSpeed stays DeepSpeed."""
    if spec.engine == "deepspeed":
        from model.engine_deepspeed import DeepSpeed

        return DeepSpeed(objective, spec, device, rank, world)
    kind = Fsdp if spec.engine == "fsdp2" and world > 1 else Replicas
    return kind(objective, spec, device, rank, world)
