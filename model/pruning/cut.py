"""Parts of a model by what leaving them out costs, and the model without the cheapest.

Importance is measured and not guessed: the loss on texts with the part left out. Layers go one after the other, the
cheapest first, and the rest are measured again (as ShortGPT, arXiv:2403.03853, and "The Unreasonable Ineffectiveness of
the Deeper Layers", arXiv:2403.17887, leave them out, by loss in place of a similarity). Heads leave by whole groups of
grouped-query attention (Michel et al. 2019, arXiv:1905.10650), as many in each layer, so that the model keeps the
shape that every engine reads. Channels of a feed-forward leave by the energy that they add (the norm of their column
times their activation's root mean square), again as many in each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.transformer import Block, FeedForward, Transformer


@dataclass
class Removed:
    """What was left out: ``layers`` by number with the loss without each; by layer the ``groups`` of heads with theirs;
    ``channels``, how many of each layer; the loss in nats a token before and after."""

    layers: list[tuple[int, float]] = field(default_factory=list)
    groups: list[list[tuple[int, float]]] = field(default_factory=list)
    channels: int = 0
    before: float = 0.0
    after: float = 0.0


@torch.no_grad()
def loss(model: Transformer, windows: Sequence[Tensor]) -> float:
    """Mean loss in nats a token over ``windows`` of ids [T]."""
    nats, count = 0.0, 0
    for ids in windows:
        logits = model(ids[None])[0, :-1]  # [T - 1, vocab]
        nats += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    return nats / max(1, count)


def prune(
    model: Transformer, windows: Sequence[Tensor], *, layers: int = 0, heads: int = 0, channels: int = 0
) -> tuple[Transformer, Removed]:
    """A model without ``layers`` layers, ``heads`` query heads of each layer (with their key heads) and ``channels``
    feed-forward channels of each layer, and what was left out.

    Raises ValueError for numbers that leave nothing or break a group.
    """
    _check(model, layers, heads, channels)
    removed = Removed(before=loss(model, windows))
    model = _without_layers(model, windows, layers, removed)
    if heads:
        model = _without_heads(model, windows, heads, removed)
    if channels:
        model = _without_channels(model, windows, channels)
        removed.channels = channels
    removed.after = loss(model, windows)
    return model, removed


def _check(model: Transformer, layers: int, heads: int, channels: int) -> None:
    c = model.config
    group = c.heads // c.kv_heads
    if not layers and not heads and not channels:
        raise ValueError("nothing is to be left out; give --layers, --heads or --ffn")
    if not 0 <= layers < c.layers:
        raise ValueError(f"--layers {layers} of {c.layers} layers leaves no model")
    if heads % group or not 0 <= heads < c.heads:
        possible = ", ".join(str(n) for n in range(group, c.heads, group)) or "none"
        raise ValueError(
            f"--heads {heads}: heads leave with their key head, by {group} of {c.heads}; possible: {possible}"
        )
    if channels and c.experts:
        raise ValueError("--ffn: channels of a mixture of experts are not pruned")
    if not 0 <= channels < c.ffn:
        raise ValueError(f"--ffn {channels} of {c.ffn} channels leaves no feed-forward")


def _blocks(model: Transformer) -> Iterator[Block]:
    for block in model.model.layers:
        yield cast(Block, block)


def _without_layers(model: Transformer, windows: Sequence[Tensor], count: int, removed: Removed) -> Transformer:
    names = list(range(model.config.layers))
    for _ in range(count):
        blocks = list(_blocks(model))
        costs = []
        for i in range(len(blocks)):
            model.model.layers = nn.ModuleList(blocks[:i] + blocks[i + 1 :])
            costs.append(loss(model, windows))
        cheapest = min(range(len(costs)), key=costs.__getitem__)
        model.model.layers = nn.ModuleList(blocks[:cheapest] + blocks[cheapest + 1 :])
        removed.layers.append((names.pop(cheapest), costs[cheapest]))
    model.config = replace(model.config, layers=len(model.model.layers))
    return model


@torch.no_grad()
def _without_heads(model: Transformer, windows: Sequence[Tensor], heads: int, removed: Removed) -> Transformer:
    c = model.config
    head, group = c.head_size, c.heads // c.kv_heads
    keep: list[list[int]] = []
    for block in _blocks(model):
        out = block.self_attn.o_proj.weight
        costs = []
        for i in range(c.kv_heads):
            columns = slice(i * group * head, (i + 1) * group * head)
            kept = out[:, columns].clone()
            out[:, columns] = 0
            costs.append(loss(model, windows))
            out[:, columns] = kept
        order = sorted(range(c.kv_heads), key=costs.__getitem__)
        gone = order[: heads // group]
        removed.groups.append([(i, costs[i]) for i in gone])
        keep.append(sorted(set(order) - set(gone)))
    state = model.state_dict()
    for layer, groups in enumerate(keep):
        for name, width, dimension in (
            ("q_proj", group * head, 0), ("k_proj", head, 0), ("v_proj", head, 0), ("o_proj", group * head, 1),
        ):  # fmt: skip
            rows = torch.cat([torch.arange(g * width, (g + 1) * width) for g in groups])
            key = f"model.layers.{layer}.self_attn.{name}.weight"
            state[key] = state[key].index_select(dimension, rows)
    return _made(replace(c, heads=c.heads - heads, kv_heads=c.kv_heads - heads // group, head_dim=head), state)


@torch.no_grad()
def _without_channels(model: Transformer, windows: Sequence[Tensor], channels: int) -> Transformer:
    energy = _energies(model, windows)
    state = model.state_dict()
    for layer, own in enumerate(energy):
        rows = own.argsort(stable=True)[channels:].sort().values
        for name, dimension in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            key = f"model.layers.{layer}.mlp.{name}.weight"
            state[key] = state[key].index_select(dimension, rows)
    return _made(replace(model.config, ffn=model.config.ffn - channels), state)


def _energies(model: Transformer, windows: Sequence[Tensor]) -> list[Tensor]:
    """Of each layer's channels [ffn]: mean square of the activation times the squared norm of its column."""
    sums = [torch.zeros(model.config.ffn) for _ in range(model.config.layers)]

    def gather(total: Tensor):
        return lambda _, inputs: total.add_(inputs[0].reshape(-1, inputs[0].shape[-1]).square().sum(0))

    feeds = [cast(FeedForward, block.mlp) for block in _blocks(model)]
    hooks = [feed.down_proj.register_forward_pre_hook(gather(total)) for feed, total in zip(feeds, sums, strict=True)]
    for ids in windows:
        model.hidden(ids[None])
    for hook in hooks:
        hook.remove()
    return [total * feed.down_proj.weight.square().sum(0) for feed, total in zip(feeds, sums, strict=True)]


def _made(config, state: dict[str, Tensor]) -> Transformer:
    model = Transformer(config).eval()
    model.load_state_dict(state)
    return model
