"""How weights were rounded, as ``quantization_config`` of a ``config.json`` states it.

The two forms are those of the ``compressed-tensors`` format, which vLLM and ``transformers`` read as well: W8A8
(``int-quantized``: int8 weights with a scale for each output, activations rounded token by token as they come) and
W4A16 (``pack-quantized``: four-bit weights with a scale for each group of inputs). Embedding, output matrix, norms and
routers keep their floating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GROUPS = (32, 64, 128)
"""Input widths that may share one scale of int4."""


@dataclass(frozen=True)
class Scheme:
    """``bits`` 8 or 4; ``group`` inputs that share a scale (0: all inputs of an output share one)."""

    bits: int
    group: int = 0

    def config(self, kept: list[str]) -> dict[str, Any]:
        """``quantization_config`` of a model whose matrices are all rounded so, but for those named in ``kept``."""
        weights = _arguments(self.bits, "group" if self.group else "channel", self.group or None, dynamic=False)
        activations = None if self.bits == 4 else _arguments(8, "token", None, dynamic=True)
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": activations,
            "output_activations": None,
            "format": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized" if self.bits == 4 else "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": kept,
            "kv_cache_scheme": None,
        }


def _arguments(bits: int, strategy: str, group: int | None, *, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group,
        "dynamic": dynamic,
        "actorder": None,
        "block_structure": None,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
    }


def scheme_of(values: dict[str, Any], where: str) -> Scheme:
    """The scheme of a ``quantization_config``. Raises ValueError naming what is not computed here."""
    if values.get("quant_method") != "compressed-tensors":
        raise ValueError(
            f"{where}: quantization_config: quant_method {values.get('quant_method')!r} is not supported, only"
            " compressed-tensors (what `pipeline quantize` writes)"
        )
    groups = list((values.get("config_groups") or {}).values())
    if len(groups) != 1 or groups[0].get("targets") != ["Linear"] or values.get("kv_cache_scheme"):
        raise ValueError(f"{where}: quantization_config: one config group of all Linear modules is supported")
    weights = groups[0].get("weights") or {}
    scheme = Scheme(weights.get("num_bits") or 0, weights.get("group_size") or 0)
    known = scheme == Scheme(8) or (scheme.bits == 4 and scheme.group in GROUPS)
    expected = scheme.config([])["config_groups"]["group_0"] if known else {}
    for part in ("weights", "input_activations"):
        own, theirs = expected.get(part) or {}, groups[0].get(part) or {}
        told = ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "actorder")
        different = [name for name in told if (own.get(name) or None) != (theirs.get(name) or None)]
        if not known or different:
            said = ", ".join(f"{name} {theirs.get(name)!r}" for name in different or told)
            raise ValueError(f"{where}: quantization_config: {part} with {said} is not supported")
    return scheme
