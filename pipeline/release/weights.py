"""Weights of a model directory as numpy arrays, in and out of safetensors files (a JSON header and bytes)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}

HfConfig: TypeAlias = dict[str, Any]
"""The values of a ``config.json``."""


def read_tensors(model: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and fp32 values of a model directory's weights, names sorted within a file."""
    files = sorted(model.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{model}: no model*.safetensors; a model directory is needed")
    for path in files:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
        for name in sorted(header.keys() - {"__metadata__"}):
            kind, (begin, end) = header[name]["dtype"], header[name]["data_offsets"]
            if kind not in _NUMPY:
                raise ValueError(f"{path}: {name} is {kind}; only F32, F16 and BF16 weights can be exported")
            raw = data[begin:end].view(_NUMPY[kind]).reshape(header[name]["shape"])
            yield name, from_bf16(raw) if kind == "BF16" else raw.astype(np.float32)


def write_tensors(tensors: dict[str, np.ndarray], path: Path, dtype: str) -> None:
    """Write a safetensors file in ``dtype`` ("bf16" or "fp32"), names sorted, one tensor in memory at a time."""
    kind, width = ("BF16", 2) if dtype == "bf16" else ("F32", 4)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in sorted(tensors.items()):
        begin, end = end, end + value.size * width
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the data and want it aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, value in sorted(tensors.items()):
            (to_bf16(value) if dtype == "bf16" else np.ascontiguousarray(value)).tofile(file)


def to_bf16(value: np.ndarray) -> np.ndarray:
    """The upper halves (uint16) of fp32 values, rounded to nearest even as torch does; NaN stays NaN."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(value), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bf16(raw: np.ndarray) -> np.ndarray:
    """fp32 values of bf16 bits held as uint16."""
    return (raw.astype(np.uint32) << 16).view(np.float32)
