"""What a worker finds around it: the environment of its processes, and what this machine has of what it needs."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from typing import TYPE_CHECKING

from model.running.devices import visible_gpus
from storage.places import ROOT, home
from tasks.running.events import Listener

if TYPE_CHECKING:
    from pipeline.config.resources import Resources

log = logging.getLogger(__name__)
Report = Listener

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
# Set by a surrounding launcher or an earlier run; a rank must only see what its own launcher says.
STALE = ("PREFECT_", "MLFLOW_", "TORCHELASTIC_", "MASTER_", "RAY_")
STALE_NAMES = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "CROSS_RANK",
    "CROSS_SIZE",
}


def worker_environment(on: Resources, *, single: bool = False) -> dict[str, str]:
    """Environment of the workers: this process's without Prefect and MLflow, with threads, caches and allocator set.

    What the user set by hand (OMP_NUM_THREADS, an allocator or cache variable) stays, except that ``on.threads`` wins.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(STALE) and k not in STALE_NAMES}
    gpu = gpus(on) > 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cache = home() / "cache"
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // (1 if single else on.nproc))),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TORCH_EXTENSIONS_DIR": str(cache / "torch_extensions"),  # DeepSpeed's CPU helper takes 77 s to compile, once
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # a shared store hands a restarted gloo group stale addresses
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONSAFEPATH": "1",  # a folder `model` in the working directory must not shadow ours
        **(
            {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
            if gpu
            else {**MALLOC, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        ),
    }
    environment = {**defaults, **environment}
    if on.threads:
        environment["OMP_NUM_THREADS"] = str(on.threads)
    if not gpu:
        environment.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    path = [str(ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    return environment


def gpus(on: Resources) -> int:
    """How many GPUs the workers may use: 0 for ``device = "cpu"``."""
    return 0 if on.device == "cpu" else visible_gpus()


def lacking(on: Resources) -> list[str]:
    """What ``on`` asks of this machine and it does not have, a line each; found without loading torch."""
    if on.engine == "ray":
        return []  # the cluster's machines have it; where there is none, placing says so
    if on.nnodes > 1 and not on.hostfile:
        return [
            f"resources.nnodes={on.nnodes} machines are found by Ray: set resources.engine=ray (docs/cluster.md), or"
            " give DeepSpeed's launcher a resources.hostfile"
        ]
    count, problems = gpus(on), list[str]()
    if on.device == "cuda" and not count:
        problems.append(
            "resources.device=cuda, but this machine shows no GPU (CUDA_VISIBLE_DEVICES, /dev/nvidia*); set"
            " resources.device=auto"
        )
    elif count and on.device == "cuda" and importlib.metadata.version("torch").endswith("+cpu"):
        problems.append(
            f"resources.device=cuda, but the installed torch {importlib.metadata.version('torch')} is built"
            " without CUDA; install one with it, or set resources.device=cpu"
        )
    if on.fp8 and not count:
        problems.append(
            "resources.fp8 needs a GPU with fp8 units, and this machine shows no GPU (or resources.device=cpu); set"
            " resources.fp8=false"
        )
    if count and on.nproc > count:
        problems.append(
            f"resources.nproc={on.nproc} ranks need as many GPUs, but {count} can be seen; lower resources.nproc or set"
            " resources.device=cpu"
        )
    return problems


def check_devices(on: Resources) -> None:
    if problems := lacking(on):
        raise ValueError("\n".join(problems))
