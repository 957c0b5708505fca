"""The devices that a rank can run on, known without torch: what data sheets say, and which GPUs this machine shows.

One table for all who ask: speed against the machine's limit (:mod:`model.running.machine`), memory for the micro-batch
(:mod:`model.running.setup`), and ``pipeline estimate``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """What one rank runs on: FLOP/s of matrix products, bytes of memory, bytes/s of memory, of the link in a node and
    of the network.

    ``width`` is the compute type's bytes, ``family`` the row of :data:`model.running.estimate.speed.MFU`. GPUs by their
    data sheets (dense bf16, a whole GPU); this machine's CPU by measurement (:func:`model.running.machine.cpu_device`).
    """

    name: str
    family: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    width: int = 2

    @property
    def cpu(self) -> bool:
        """Whether ranks are processes on a CPU."""
        return self.family.startswith("cpu")


_PCIE4, _PCIE5 = 25e9, 50e9
_BY_DRIVER = {
    "B200": Device("B200", "hopper", 2250e12, 180e9, 8.0e12, 900e9, 50e9),
    "GH200": Device("GH200", "hopper", 989e12, 96e9, 4.0e12, 450e9, 50e9),
    "H200": Device("H200 SXM", "hopper", 989e12, 141e9, 4.8e12, 450e9, 50e9),
    "H100": Device("H100 SXM", "hopper", 989e12, 80e9, 3.35e12, 450e9, 50e9),
    "H100 NVL": Device("H100 NVL", "hopper", 835e12, 94e9, 3.9e12, _PCIE5, 50e9),
    "H100 PCIe": Device("H100 PCIe", "hopper", 756e12, 80e9, 2.0e12, _PCIE5, 50e9),
    "H800": Device("H800 SXM", "hopper", 989e12, 80e9, 3.35e12, 200e9, 50e9),
    "H20": Device("H20", "hopper", 148e12, 96e9, 4.0e12, 450e9, 50e9),
    "A100": Device("A100 SXM 80 GB", "ampere", 312e12, 80e9, 2.0e12, 300e9, 25e9),
    "A800": Device("A800 SXM 80 GB", "ampere", 312e12, 80e9, 2.0e12, 200e9, 25e9),
    "A40": Device("A40", "ampere", 150e12, 48e9, 0.696e12, _PCIE4, 12.5e9),
    "A10": Device("A10", "ampere", 125e12, 24e9, 0.6e12, _PCIE4, 12.5e9),
    "A6000": Device("RTX A6000", "ampere", 155e12, 48e9, 0.768e12, _PCIE4, 12.5e9),
    "L40S": Device("L40S", "ampere", 362e12, 48e9, 0.864e12, _PCIE4, 12.5e9),
    "L40": Device("L40", "ampere", 181e12, 48e9, 0.864e12, _PCIE4, 12.5e9),
    "L4": Device("L4", "ampere", 121e12, 24e9, 0.3e12, _PCIE4, 12.5e9),
    "RTX 5090": Device("RTX 5090", "ampere", 210e12, 32e9, 1.79e12, _PCIE5, 12.5e9),
    "RTX 4090": Device("RTX 4090", "ampere", 165e12, 24e9, 1.0e12, _PCIE4, 12.5e9),
    "RTX 4080": Device("RTX 4080", "ampere", 97e12, 16e9, 0.717e12, _PCIE4, 12.5e9),
    "RTX 3090": Device("RTX 3090", "ampere", 71e12, 24e9, 0.936e12, _PCIE4, 12.5e9),
    "RTX 3080": Device("RTX 3080", "ampere", 60e12, 10e9, 0.76e12, _PCIE4, 12.5e9),
}
"""By a part of the name that the driver gives. Figures are the vendors' data sheets': dense bf16 with fp32 sums, links
in one direction. ``family`` is the nearest one whose utilisation was published."""
GPUS = {key.lower().removeprefix("rtx ").replace(" ", "-"): device for key, device in _BY_DRIVER.items()}
"""The same by the short name that a command line takes: h100, h100-pcie, 4090."""


def known_gpu(name: str) -> Device | None:
    """The GPU of a driver's name ("NVIDIA H100 80GB HBM3"), by the longest entry in it; None when there is none."""
    entries = [key for key in _BY_DRIVER if key in name]
    return _BY_DRIVER[max(entries, key=len)] if entries else None


def visible_gpus() -> int:
    """How many GPUs this machine shows to a process started now, found without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) or int(Path("/dev/dxg").exists())
