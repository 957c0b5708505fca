"""From a model directory to one of its rounded forms: safetensors, config and tokenizer, nothing that runs code."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.network.hf_config import to_hf
from model.network.moe import Experts
from model.network.transformer import Linear, Transformer
from model.network.weights import TOKENIZER_FILES, load_model
from model.quantized.linear import pack
from model.quantized.rounding import int4_codes, int8_codes, restored
from model.quantized.scheme import GROUPS, Scheme
from model.running.files import replacing, write_json

METHODS = ("nearest", "search", "gptq")
_COPIED = (*TOKENIZER_FILES, "generation_config.json")
_BLOCK = re.compile(r"model\.layers\.(\d+)\.")


def write_rounded(
    source: Path, out: Path, scheme: Scheme, *, method: str = "search", windows: Sequence[Tensor] = ()
) -> None:
    """Write the ``scheme``'s form of the model in ``source`` to ``out``.

    ``method`` is one of :data:`METHODS`; ``windows`` are calibration texts as ids [T], which "gptq" needs. Raises
    ValueError for a width that the group does not divide.
    """
    model = load_model(source).eval()
    _check(model, scheme)
    tensors: dict[str, Tensor] = {}
    for block, matrices in _blocks(model):
        hessians = _hessians(model, block, matrices, windows) if method == "gptq" and scheme.bits == 4 else {}
        for name, linear in matrices.items():
            codes, scale = _rounded(linear.weight.detach(), scheme, method, hessians.get(name))
            tensors |= _stored(name, codes, scale, scheme)
            with torch.no_grad():  # the blocks behind are calibrated on what this one will really give
                linear.weight.copy_(restored(codes, scale))
        for name, weight in _experts(model, block):
            tensors |= _stored(name, *_rounded(weight, scheme, method, None), scheme)
    for name, parameter in model.named_parameters():
        if f"{name}_scale" in tensors or f"{name}_packed" in tensors or ".mlp.experts." in name:
            continue
        exact = parameter.ndim == 1 or name.endswith("mlp.gate.weight")  # norms and routers
        tensors[name] = parameter.detach().to(torch.float32 if exact else torch.bfloat16).contiguous()
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "model.safetensors") as temporary:
        save_file(dict(sorted(tensors.items())), temporary, metadata={"format": "pt"})
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    write_json(out / "config.json", _config(source, model, scheme), indent=2)


def _config(source: Path, model: Transformer, scheme: Scheme) -> dict[str, Any]:
    given = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ids = {name: value for name, value in given.items() if name.endswith("_token_id")}
    routers = ["re:.*mlp\\.gate$"] if model.config.experts else []
    rounding = scheme.config(["lm_head", *routers])
    return {**to_hf(model.config, ids), "torch_dtype": "bfloat16", "quantization_config": rounding}


def _check(model: Transformer, scheme: Scheme) -> None:
    widths = sorted({linear.in_features for _, own in _blocks(model) for linear in own.values()})
    if model.config.experts:
        widths = sorted({*widths, model.config.dim, model.config.expert_size})
    uneven = [width for width in widths if scheme.group and width % scheme.group]
    if uneven:
        fitting = [str(group) for group in GROUPS if not any(width % group for width in widths)]
        raise ValueError(
            f"int4 with groups of {scheme.group} does not fit matrices of {', '.join(map(str, uneven))} inputs;"
            + (f" quantize.group may be {' or '.join(fitting)}" if fitting else " take int8")
        )


def _blocks(model: Transformer) -> Iterator[tuple[int, dict[str, Linear]]]:
    """The matrices of each block by name."""
    for i, block in enumerate(model.model.layers):
        yield i, {f"model.layers.{i}.{n}": m for n, m in block.named_modules() if isinstance(m, Linear)}


def _experts(model: Transformer, block: int) -> Iterator[tuple[str, Tensor]]:
    mixture = getattr(model.model.layers[block].mlp, "experts", None)
    if isinstance(mixture, Experts):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            for i, weight in enumerate(getattr(mixture, projection).detach()):
                yield f"model.layers.{block}.mlp.experts.{i}.{projection}", weight


def _rounded(weight: Tensor, scheme: Scheme, method: str, hessian: Tensor | None) -> tuple[Tensor, Tensor]:
    return int8_codes(weight) if scheme.bits == 8 else int4_codes(weight, scheme.group, method, hessian)


def _stored(name: str, codes: Tensor, scale: Tensor, scheme: Scheme) -> dict[str, Tensor]:
    if scheme.bits == 8:
        return {f"{name}.weight": codes, f"{name}.weight_scale": scale}
    shape = torch.tensor(codes.shape, dtype=torch.int64)
    return {f"{name}.weight_packed": pack(codes), f"{name}.weight_scale": scale, f"{name}.weight_shape": shape}


class _Enough(Exception):
    """Ends a pass through the model behind the block that is looked at."""


@torch.no_grad()
def _hessians(
    model: Transformer, block: int, matrices: dict[str, Linear], windows: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The mean outer product [inputs, inputs] of each matrix's inputs on the ``windows``."""
    sums = {name: torch.zeros(m.in_features, m.in_features) for name, m in matrices.items()}
    rows = 0

    def gather(name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            sums[name].addmm_(flat.t(), flat)

        return hook

    def leave(*_: Any) -> None:
        raise _Enough

    hooks = [matrix.register_forward_pre_hook(gather(name)) for name, matrix in matrices.items()]
    hooks.append(cast(nn.Module, model.model.layers[block]).register_forward_hook(leave))
    try:
        for ids in windows:
            rows += len(ids)
            with contextlib.suppress(_Enough):
                model.hidden(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / max(1, rows) for name, total in sums.items()}
