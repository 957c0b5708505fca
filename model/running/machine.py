"""What the machine under a worker can do: device, native precision, peak speed, and noticing that the parent died."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from model.running.devices import Device, known_gpu


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """The device of this rank. Raises ValueError when a GPU is wanted and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device = cuda, but torch sees no GPU; set resources.device=auto or install a CUDA build of torch"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it natively, else fp32. Never fp16: a CPU emulates it, at a tenth of the
    speed."""
    if wanted != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    return torch.bfloat16 if _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"} else torch.float32


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split())
    except OSError:
        pass
    return frozenset()


@functools.cache
def peak_flops(device_type: str, dtype: torch.dtype) -> float:
    """Matrix-multiply peak of one rank in FLOP/s: the data sheet's for a known GPU, else the best of a short
    measurement."""
    if device_type == "cuda":
        known = known_gpu(torch.cuda.get_device_name())
        if known and dtype == torch.bfloat16:
            return known.flops
    size = 4096 if device_type == "cuda" else 1024
    a = torch.randn(size, size, device=device_type, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        if device_type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


GLOO = 1.0e9
"""Bytes/s that a gloo all-reduce moves between processes of one machine, a rank: an assumption, not measured."""


def cpu_device(ranks: int, wanted: str = "auto") -> Device:
    """This machine's CPU as the calculator's device, shared evenly by ``ranks``: matrix products and copies are
    measured (2 s)."""
    dtype = pick_dtype(wanted, torch.device("cpu"))
    name = str(dtype).removeprefix("torch.")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    source, target, best = torch.zeros(1 << 26), torch.zeros(1 << 26), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return Device(
        f"CPU rank ({torch.get_num_threads()} threads in all)",
        f"cpu {name}",
        peak_flops("cpu", dtype) / ranks,
        memory / ranks,
        2.0 * source.nbytes / best / ranks,
        GLOO,
        GLOO,
        dtype.itemsize,
    )


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler on a CPU, Triton on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0) and _importable("triton")
    return platform.system() != "Windows" and any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")
    )


def _importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def peak_memory(device: torch.device) -> int:
    """Most memory this process has used so far, in bytes (of the GPU, or resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Orphan:
    """Notices that the process that started this one is gone; on Linux the kernel also sends SIGTERM then
    (prctl(2))."""

    def __init__(self) -> None:
        self.parent = os.getppid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)

    def __bool__(self) -> bool:
        return os.getppid() != self.parent
