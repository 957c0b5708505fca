"""Model directories whatever their weights are rounded to: what answers questions and is scored opens them here.

Training does not: it refuses a ``quantization_config`` by name, because rounded weights cannot be trained on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.network.hf_config import from_hf
from model.network.transformer import Transformer
from model.network.weights import load_state
from model.quantized.linear import QuantizedExperts, linear_of
from model.quantized.scheme import Scheme, scheme_of

_PART = re.compile(r"(.+)\.(weight|weight_scale|weight_packed|weight_shape)$")
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(\w+)$")


def open_model(path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Transformer:
    """The model in a directory, for answers and likelihoods: int8 and int4 forms as they are, any other by
    ``Transformer.from_dir``. Raises ValueError for a layout that is none of ours."""
    config = Path(path) / "config.json"
    values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    rounding = values.get("quantization_config") if isinstance(values, dict) else None
    if not rounding:
        return Transformer.from_dir(path, dtype=dtype, device=device)
    scheme = scheme_of(rounding, str(config))
    shape = from_hf({name: value for name, value in values.items() if name != "quantization_config"}, str(config))
    state: dict[str, Tensor] = {}
    for shard in sorted(Path(path).glob("model*.safetensors")):
        state |= load_file(shard)
    with torch.device("meta"):
        model = Transformer(shape)
    rest = _put_in(model, scheme, state)
    model = _emptied(model)
    load_state(model, {name: value.float() for name, value in rest.items()}, str(path))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.compute_dtype = dtype
    return model.to(device)


def _put_in(model: Transformer, scheme: Scheme, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace what has been rounded in a ``model`` on the meta device; returns the other tensors."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if match := _PART.match(name):
            modules.setdefault(match[1], {})[match[2]] = value
    rounded = {name: parts for name, parts in modules.items() if "weight_scale" in parts}
    experts: dict[str, dict[int, dict[str, nn.Module]]] = {}
    for name, parts in rounded.items():
        if match := _EXPERT.match(name):
            experts.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = linear_of(scheme, parts)
        else:
            model.set_submodule(name, linear_of(scheme, parts))
    for name, own in experts.items():
        model.set_submodule(name, QuantizedExperts([own[i] for i in sorted(own)]))
    return {name: value for name, value in state.items() if not ((match := _PART.match(name)) and match[1] in rounded)}


def _emptied(model: Transformer) -> Transformer:
    """Memory for the parameters that are still on the meta device; buffers stay."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False))
    return model
