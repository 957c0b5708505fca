"""What a run says about itself: metrics.jsonl, a heartbeat, and speed against the machine's limit.

``mfu`` is model FLOPs utilisation: FLOPs the model needs (:meth:`ModelConfig.flops_per_token`, recomputation not
counted) for the slots computed, over what all ranks could multiply (:func:`model.running.machine.peak_flops`).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from model.running.files import write_text
from model.running.machine import peak_memory

WARM_UP = 3
"""Steps left out of a run's speed when it has more: the first compile and allocate."""


class Meter:
    """Measures and logs; only rank 0 writes. ``flops`` a slot, ``peak`` FLOP/s of all ranks together."""

    def __init__(self, run: Path, rank: int, device: torch.device, flops: float, peak: float) -> None:
        self.path, self.heart, self.rank, self.device = run / "metrics.jsonl", run / "heartbeat", rank, device
        self.flops, self.peak = flops, peak
        self._window = [0.0, 0, 0, 0.0]  # seconds, tokens, slots, seconds spent on data since the last log
        self._all: list[tuple[float, int, int]] = []
        self._mark = time.perf_counter()
        self._began = time.monotonic()
        self._last: dict[str, Any] = {}

    def start(self) -> None:
        """Time from here on counts as training."""
        self._mark = time.perf_counter()

    def beat(self) -> None:
        """Tell the launcher that this worker lives."""
        if self.rank == 0:
            with open(self.heart, "ab"):
                os.utime(self.heart)

    def data(self, seconds: float) -> None:
        """Count time that the step waited for its rows."""
        self._window[3] += seconds

    def step(self, tokens: int, slots: int, wait: bool) -> None:
        """A step is done. ``wait``: its numbers are about to be read, so a GPU's clock may be read too."""
        if wait and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._window = [self._window[0] + seconds, self._window[1] + tokens, self._window[2] + slots, self._window[3]]
        self._all.append((seconds, tokens, slots))
        self.beat()

    def pause(self) -> None:
        """Time since the last step (validation, checkpoint) is not training."""
        self._mark = time.perf_counter()

    def log(self, values: dict[str, Any], speed: bool = False) -> None:
        """Append a record; ``speed`` adds rates since the last such record."""
        record = {"time": time.time(), **values}
        if speed:
            seconds, tokens, slots, waited = self._window
            record |= {
                **self._rates(seconds, tokens, slots),
                "data_wait": waited / seconds,
                "memory_bytes": peak_memory(self.device),
            }
            self._window = [0.0, 0, 0, 0.0]
            self._last = record
        if self.rank == 0:
            with open(self.path, "a", encoding="utf-8") as out:
                out.write(json.dumps(record, sort_keys=True) + "\n")

    def _rates(self, seconds: float, tokens: int, slots: int) -> dict[str, float]:
        return {
            "tokens_per_second": tokens / seconds,
            "slots_per_second": slots / seconds,
            "mfu": slots * self.flops / seconds / self.peak,
        }

    def rewind(self, step: int) -> None:
        """Drop records of steps after ``step``: a resumed run writes them again."""
        if self.rank or not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the half-written last line of a killed writer
        write_text(self.path, "".join(kept))

    def summary(self) -> dict[str, Any]:
        """Speed of this attempt (without its first steps), wall seconds, and the last training loss."""
        out: dict[str, Any] = {"seconds": round(time.monotonic() - self._began, 3)}
        if "loss" in self._last:
            out["train_loss"] = self._last["loss"]
        counted = self._all[WARM_UP:] or self._all
        if counted:
            out |= self._rates(*(sum(column) for column in zip(*counted, strict=True)))
        return out
