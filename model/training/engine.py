"""How ranks share one model: replicas, FSDP2, DeepSpeed, all behind the same few methods.

An engine owns the optimizer and its parameter groups. A group's tensors exist in the engine's own form (one flat
buffer, shards, partitions), told by :meth:`Engine.spans`: which elements of which parameter a rank holds, and where.
With this one table Newton-Schulz, checkpoints and resuming on another number of ranks, or by another engine, are
written once.

Gradients are summed by us and not by DistributedDataParallel: its buckets are laid out anew after the first step, so a
resumed run would add in another order, and it hides communication that is under 2 % of a step at these sizes.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.objectives.base import Objective
from model.running.checkpoint import Piece
from model.specs.train import TrainSpec
from model.training.optim import MuonAdamW, gather, groups, orthogonalize

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

UNLIMITED = torch.tensor(float("inf"))
AT_ONCE = 1 << 28
"""Elements of matrices that are made whole together for Newton-Schulz: what a rank needs besides its share of a model
stays bounded."""
STATES = {"muon": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


class Span(NamedTuple):
    """Elements ``begin`` to ``begin + length`` of a group's flattened parameter ``param`` (its number) lie from ``at``
    on in a rank's tensor number ``tensor``."""

    param: int
    begin: int
    tensor: int
    at: int
    length: int


def fine(norm: Tensor, limit: Tensor) -> Tensor:
    """Whether an update with this gradient norm is applied (scalar bool)."""
    return torch.isfinite(norm) & (norm <= limit.to(norm.device))


class Engine(abc.ABC):
    """Base: a process group of ``world`` ranks that all run the same steps. Subclasses say in what form tensors live.

    ``independent``: ranks meet only in :meth:`step`, so that one may repeat its micro-batches alone.
    ``replicated``: every rank's spans are the whole model.
    """

    independent = False
    replicated = False

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

    @abc.abstractmethod
    def step(self, factor: float, limit: Tensor = UNLIMITED) -> Tensor:
        """Update with rates times ``factor``; the gradient norm before clipping. A norm above ``limit``, or not finite,
        changes nothing."""

    @abc.abstractmethod
    def spans(self, group: dict[str, Any], rank: int) -> list[Span]:
        """What ``rank`` holds of each parameter of ``group``, in the order of the parameters."""

    def rates(self, factor: float) -> None:
        """Set every group's rate for the coming step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def local(self, group: dict[str, Any]) -> list[Tensor]:
        """What the optimizer holds as parameters of ``group``: tensors that its spans point into."""
        return self.optimizer.param_groups[group["index"]]["params"]

    def updates(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        """Orthogonal updates for the optimizer, which sees only this rank's part of each matrix."""
        out = [torch.zeros_like(t) for t in tensors]
        flat = [t.view(-1) for t in out]  # views into out
        spans = self.spans(group, self.rank)
        for chosen in slices(group["shapes"]):
            # whole matrices, some at a time, because all of them would not fit
            done = self.orthogonal(self.whole(group, tensors, chosen))
            for s in spans:
                if s.param in chosen:
                    flat[s.tensor][s.at : s.at + s.length] = done[s.param - chosen.start].reshape(-1)[
                        s.begin : s.begin + s.length
                    ]
        return out

    def orthogonal(self, matrices: list[Tensor]) -> list[Tensor]:
        """Muon's updates of whole matrices, in the compute type, each rank doing its share."""
        return orthogonalize(matrices, self.objective.lm.compute_dtype, self.rank, self.world)

    def whole(self, group: dict[str, Any], tensors: list[Tensor], chosen: range) -> list[Tensor]:
        """Of tensors that lie like :meth:`local`, the parameters ``chosen`` in full shape, on this rank's device.
        Collective unless replicated."""
        shapes, flat = group["shapes"][chosen.start : chosen.stop], [t.detach().reshape(-1) for t in tensors]
        ranks = [self.rank] if self.replicated else range(self.world)
        spans = {r: [s for s in self.spans(group, r) if s.param in chosen] for r in ranks}
        # what this rank holds of the chosen parameters, in a row
        mine = torch.cat([flat[s.tensor][s.at : s.at + s.length] for s in spans[self.rank]] or [flat[0][:0]]).to(
            self.device
        )
        size = max(sum(s.length for s in held) for held in spans.values())
        parts = torch.empty(len(ranks), size, dtype=mine.dtype, device=self.device)
        if self.replicated:
            parts[0] = mine
        else:
            gather(parts.view(-1), F.pad(mine, (0, size - mine.numel())))
        # back into parameters: each is the ranks' parts of it, in their order
        cut: list[list[Tensor]] = [[] for _ in shapes]
        for part, held in zip(parts, spans.values(), strict=True):
            for s, values in zip(
                held, part[: sum(s.length for s in held)].split([s.length for s in held]), strict=True
            ):
                cut[s.param - chosen.start].append(values)
        return [
            (torch.cat(values) if len(values) > 1 else values[0]).view(shape)
            for values, shape in zip(cut, shapes, strict=True)
        ]

    def pieces(self) -> Iterator[Piece]:
        """This rank's part of parameters ("param:NAME") and optimizer state ("momentum_buffer:NAME", …), as views: to
        save, or to load into."""
        for group in self.groups:
            params = self.local(group)
            for key in ("param", *STATES[group["kind"]]):
                flat = [(p if key == "param" else self._state(p, key)).detach().view(-1) for p in params]
                for s in self.spans(group, self.rank):
                    total = torch.Size(group["shapes"][s.param]).numel()
                    yield Piece(
                        f"{key}:{group['names'][s.param]}", s.begin, total, flat[s.tensor][s.at : s.at + s.length]
                    )

    def written(self) -> Iterator[Piece]:
        """The pieces that this rank saves; of replicas rank 0 saves all."""
        return iter(()) if self.replicated and self.rank else self.pieces()

    def _state(self, p: Tensor, key: str) -> Tensor:
        """State ``key`` of a parameter, made as the optimizer makes it when there was no update yet."""
        state = self.optimizer.state[p]
        if key not in state:
            state[key] = torch.zeros_like(p)
        if key.startswith("exp_avg"):
            state.setdefault("step", torch.zeros((), device=p.device))
        return state[key]

    @property
    def applied(self) -> int:
        """Updates that AdamW has made: what its bias correction counts."""
        return int(next((state["step"] for state in self.optimizer.state.values() if "step" in state), 0))

    def loaded(self, applied: int) -> None:
        """Called after :meth:`pieces` were filled: the rest of the state, and copies of the parameters. Collective."""
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"].fill_(applied)

    def weights(self) -> dict[str, Tensor]:
        """All trained parameters by name in fp32, on the CPU of rank 0; elsewhere empty. Collective."""
        state: dict[str, Tensor] = {}
        for group in self.groups:
            for chosen in slices(group["shapes"]):
                full = self.whole(group, self.local(group), chosen)
                if self.rank == 0:
                    state |= {group["names"][i]: t.cpu() for i, t in zip(chosen, full, strict=True)}
        return state


def slices(shapes: list[tuple[int, ...]]) -> Iterator[range]:
    """Ranges of parameters of at most ``AT_ONCE`` elements together (or of one)."""
    begin = taken = 0
    for i, shape in enumerate(shapes):
        size = torch.Size(shape).numel()
        if i > begin and taken + size > AT_ONCE:
            yield range(begin, i)
            begin, taken = i, 0
        taken += size
    yield range(begin, len(shapes))


def in_a_row(shapes: list[tuple[int, ...]]) -> list[tuple[int, int]]:
    """(offset, elements) of parameters that lie one after the other in a flat buffer."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return list(zip(itertools.accumulate(sizes, initial=0), sizes))  # noqa: B905 - the last sum is nobody's offset


class Replicas(Engine):
    """Every rank holds the whole model in a few flat fp32 buffers; gradients are summed once per update."""

    independent = replicated = True

    def __init__(self, objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> None:
        super().__init__(objective, spec, device, rank, world)
        sizes = [sum(p.numel() for p in g["params"]) for g in self.groups]
        self.grad = torch.zeros(sum(sizes), device=device)  # [all elements], so that one reduction does
        flat_groups, begin = [], 0
        for group, size in zip(self.groups, sizes, strict=True):
            flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in group["params"]]))  # [elements of the group]
            flat.grad = self.grad[begin : begin + size]
            for p, (at, n) in zip(group["params"], in_a_row(group["shapes"]), strict=True):
                # the model's own tensors become views, so forward and backward pass need no copies
                p.data = flat.data[at : at + n].view_as(p)
                p.grad = flat.grad[at : at + n].view_as(p)
            begin += size
            flat_groups.append({**group, "params": [flat]})
        self.optimizer = MuonAdamW(flat_groups, spec.optim, self.updates)

    def spans(self, group: dict[str, Any], rank: int) -> list[Span]:
        return [Span(i, 0, 0, at, n) for i, (at, n) in enumerate(in_a_row(group["shapes"]))]

    def updates(self, group: dict[str, Any], tensors: list[Tensor]) -> list[Tensor]:
        parts = tensors[0].split([n for _, n in in_a_row(group["shapes"])])
        matrices = [part.view(shape) for part, shape in zip(parts, group["shapes"], strict=True)]
        return [torch.cat([t.reshape(-1) for t in self.orthogonal(matrices)])]

    def clear(self) -> None:
        self.grad.zero_()

    def step(self, factor: float, limit: Tensor = UNLIMITED) -> Tensor:
        if self.world > 1:
            # micro-batches and ranks are weighed already: a sum is the whole batch's gradient
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
            # a GPU must not be waited for
            self._clip_without_waiting(norm, limit)
        self.optimizer.step()
        self.grad.zero_()
        return norm

    def _clip_without_waiting(self, norm: Tensor, limit: Tensor) -> None:
        """On a GPU nothing may read ``norm`` on the host: a bad gradient becomes zero and its rates too, so weights
        stay."""
        # 1 or 0, on the device
        good = fine(norm, limit).float()
        torch.nan_to_num_(self.grad, 0.0, 0.0, 0.0)
        clip = self.spec.optim.clip or float("inf")
        self.grad.mul_(good * (clip / (norm + 1e-6)).clamp(max=1.0).nan_to_num(0.0))
        for group in self.optimizer.param_groups:
            # no update, and no weight decay either
            group["lr"] = good * group["lr"]


class Fsdp(Engine):
    """FSDP2: every block's parameters, gradients and optimizer state are sharded over ranks by their first
    dimension."""

    def __init__(self, objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(objective, spec, device, rank, world)
        mesh = init_device_mesh(device.type, (world,))
        half = device.type == "cuda" and objective.lm.compute_dtype == torch.bfloat16
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        # blocks are gathered one by one; embedding, head and norm with the objective, and stay
        for block in objective.lm.model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(objective, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        # what fully_shard made of them
        self.sharded = cast("dict[str, DTensor]", dict(objective.lm.named_parameters()))
        flat_groups = [
            {**g, "params": [nn.Parameter(self.sharded[n].to_local().detach()) for n in g["names"]]}
            for g in self.groups
        ]
        self.optimizer = MuonAdamW(flat_groups, spec.optim, self.updates)

    def spans(self, group: dict[str, Any], rank: int) -> list[Span]:
        found = []
        for i, shape in enumerate(group["shapes"]):
            # FSDP2 gives each rank as many rows as any, and the last ones fewer
            row, each = torch.Size(shape[1:]).numel(), -(-shape[0] // self.world)
            begin, end = (min(r * each, shape[0]) for r in (rank, rank + 1))
            found.append(Span(i, begin * row, i, 0, (end - begin) * row))
        return found

    def backward(self, loss: Tensor, last: bool) -> None:
        (
            loss * self.world
            # FSDP2 averages over ranks, ours is a sum; reduced every time, or each rank would hold the whole gradient
        ).backward()

    def step(self, factor: float, limit: Tensor = UNLIMITED) -> Tensor:
        square = torch.zeros((), device=self.device)  # sum over this rank's shards, then over all
        for group in self.optimizer.param_groups:
            for name, p in zip(group["names"], group["params"], strict=True):
                # gradients come sharded like their parameters
                p.grad = cast("DTensor", self.sharded[name].grad).to_local()
                square += p.grad.pow(2).sum()
        dist.all_reduce(square)
        norm = square.sqrt()
        self.rates(factor)
        if fine(norm, limit):
            if self.spec.optim.clip and norm > self.spec.optim.clip:
                torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage] - torch has no public name for it
                    [p.grad for g in self.optimizer.param_groups for p in g["params"]],
                    self.spec.optim.clip / (norm + 1e-6),
                )
            self.optimizer.step()
        self.objective.zero_grad(set_to_none=True)
        return norm


def make_engine(objective: Objective, spec: TrainSpec, device: torch.device, rank: int, world: int) -> Engine:
    """The engine that ``spec.how.engine`` names; one rank alone needs no sharing, but DeepSpeed stays."""
    if spec.how.engine == "deepspeed":
        from model.training.engine_deepspeed import DeepSpeed

        return DeepSpeed(objective, spec, device, rank, world)
    kind = Fsdp if spec.how.engine == "fsdp2" and world > 1 else Replicas
    return kind(objective, spec, device, rank, world)
