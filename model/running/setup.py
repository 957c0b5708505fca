"""How a worker meets its surroundings: ranks, signals, and the choices that depend on the machine."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.running.devices import Device
from model.running.estimate.memory import Plan, cached_rows, engine_name, equal_rounds, largest_micro_batch
from model.running.files import write_json
from model.running.how import How
from model.running.machine import Orphan, can_compile, peak_flops, pick_device, pick_dtype
from model.specs.shape import ModelConfig
from model.specs.train import TrainSpec

COMPILE_SECONDS = {True: 5.0, False: 50.0}
"""Time torch.compile takes with a warm cache and without; blocks share one graph, so depth costs nothing. Measured on a
CPU: 42 to 65 s without."""
COMPILE_GAIN = {"cuda": 0.33, "cpu bfloat16": 0.17, "cpu float32": 0.04}
"""Share of an eager run that compilation saves; in fp32 (measured: 0.057, 0.046 and 0.019 at 3.5M, 5M and d 512) there
are no casts to fuse."""
EAGER_MFU = {"cuda": 0.45, "cpu bfloat16": 0.45, "cpu float32": 0.6}


class Ranks:
    """The processes of this run, and whether they are to stop."""

    def __init__(self, how: How) -> None:
        self.orphan = Orphan()
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = pick_device(how.device, int(os.environ.get("LOCAL_RANK", "0")))
        if how.threads:
            torch.set_num_threads(how.threads)
        self._signalled = False
        signal.signal(signal.SIGTERM, self._stop)
        if self.world > 1 or how.engine == "deepspeed":
            for name, value in (
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", "0"),
                ("RANK", "0"),
                ("WORLD_SIZE", "1"),
                ("LOCAL_RANK", "0"),
            ):
                os.environ.setdefault(name, value)
            dist.init_process_group(
                "nccl" if self.device.type == "cuda" else "gloo", timeout=datetime.timedelta(minutes=10)
            )

    def _stop(self, number: int, frame: Any) -> None:
        self._signalled = True

    def stopping(self) -> bool:
        """Whether this rank got a signal to stop, or its launcher is gone."""
        return self._signalled or bool(self.orphan)

    def agree(self, stop: bool, due: bool, step: int, every: int) -> tuple[bool, bool]:
        """What any rank asks for, all do. On a GPU asked only every ``every`` steps: the answer has to be waited
        for."""
        if self.world == 1:
            return stop, due
        if self.device.type == "cuda" and step % every:
            return False, False
        votes = torch.tensor([float(stop), float(due and self.rank == 0)], device=self.device)
        dist.all_reduce(votes)
        return bool(votes[0] > 0), bool(votes[1] > 0)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on the CPU."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))

    def say(self, text: str) -> None:
        """Print once, from rank 0."""
        if self.rank == 0:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


@dataclass
class Choices:
    """What was decided for this machine. Kept in the run's folder: a resumed run computes in the same way, to the
    bit."""

    dtype: str
    attention: str
    compile: bool
    micro_batch: int
    log_every: int
    made_for: str
    path: str

    def save(self, ranks: Ranks, own: bool = False) -> None:
        """Remember (rank 0; with ``own`` any rank that found out something)."""
        if ranks.rank == 0 or own:
            with contextlib.suppress(FileNotFoundError):  # another rank found out the same and was faster
                write_json(Path(self.path), asdict(self))


def choose(spec: TrainSpec, config: ModelConfig, ranks: Ranks, tokens: int, run: Path) -> Choices:
    """Precision, attention, compile and micro-batch for a run over ``tokens`` slots; earlier choices for the same
    machine are kept."""
    dtype, cuda = pick_dtype(spec.how.dtype, ranks.device), ranks.device.type == "cuda"
    how = spec.how
    conditions = (
        ranks.device.type,
        ranks.world,
        torch.__version__,
        how.compile,
        how.dtype,
        how.micro_batch,
        how.engine,
    )
    made_for = " ".join(map(str, conditions))
    path = run / "choices.json"
    try:
        earlier = Choices(**json.loads(path.read_text(encoding="utf-8")))
        if earlier.made_for == made_for:
            return earlier
    except (OSError, ValueError, TypeError):
        pass
    micro = _micro_batch(spec, config, ranks, dtype, compiled=True)
    compiled = _worth_compiling(spec, config, ranks, tokens, dtype, micro)
    if not compiled:  # layers keep more then
        micro = _micro_batch(spec, config, ranks, dtype, compiled=False)
    # measured speeds and free memory differ; rank 0 decides for all
    mine = torch.tensor([micro, compiled], dtype=torch.float64) * (ranks.rank == 0)
    micro, compiled = (int(v) for v in ranks.total(mine))
    if cuda:
        attention = "flex" if compiled else "sdpa"
    else:
        attention = "manual" if spec.seq_len <= 512 else "sdpa"
    every = spec.how.log_every or (spec.GPU_LOG_EVERY if cuda else 1)
    made = Choices(str(dtype).removeprefix("torch."), attention, bool(compiled), micro, every, made_for, str(path))
    made.save(ranks)
    return made


def _micro_batch(spec: TrainSpec, config: ModelConfig, ranks: Ranks, dtype: torch.dtype, compiled: bool) -> int:
    """Rows at once: on a CPU what stays in cache, on a GPU what fits by calculation; halved later if too many."""
    if spec.how.micro_batch:
        return spec.how.micro_batch
    if ranks.device.type == "cpu":
        return equal_rounds(-(-spec.batch_rows // ranks.world), cached_rows(spec.seq_len))
    free, _ = torch.cuda.mem_get_info(ranks.device)
    return fitting_rows(spec, config, ranks.world, free, dtype.itemsize, compiled)


def fitting_rows(spec: TrainSpec, config: ModelConfig, world: int, free: float, width: int, compiled: bool) -> int:
    """The largest micro-batch for ``free`` bytes on each of ``world`` GPUs, computing in ``width`` bytes; 1 where not
    even one row fits (the run will say so)."""
    gpu = Device("this GPU", "", 0.0, free, 0.0, 0.0, 0.0, width)
    how = spec.how
    plan = Plan(
        config,
        spec.optim,
        spec.seq_len,
        spec.batch_tokens,
        tokens=0.0,
        gpus=world,
        device=gpu,
        checkpointing=how.checkpointing,
        offload=how.offload,
        compiled=compiled,
    )
    return max(1, largest_micro_batch(plan, engine_name(how, world)))


def _worth_compiling(
    spec: TrainSpec, config: ModelConfig, ranks: Ranks, tokens: int, dtype: torch.dtype, micro: int
) -> bool:
    if spec.how.compile == "off":
        return False
    if spec.how.engine == "deepspeed" and spec.how.zero_stage == 3:  # its hooks gather parameters inside the blocks
        if spec.how.compile == "on":
            ranks.say("torch.compile is left out under ZeRO 3")
        return False
    if not can_compile(ranks.device):
        ranks.say("torch.compile finds no compiler on this machine; training without")
        return False
    if spec.how.compile == "on":
        return True
    if config.experts and ranks.device.type == "cpu":  # one product an expert, outside the graph: little to gain
        return False
    name = str(dtype).removeprefix("torch.")
    kind = "cuda" if ranks.device.type == "cuda" else f"cpu {name}"
    seconds = (
        tokens
        * config.flops_per_token(spec.seq_len)
        / (EAGER_MFU[kind] * peak_flops(ranks.device.type, dtype) * ranks.world)
    )
    warm = warm_marker(spec, config, name, micro)
    return seconds * COMPILE_GAIN[kind] > COMPILE_SECONDS[bool(warm and warm.exists())]


def warm_marker(spec: TrainSpec, config: ModelConfig, dtype: str, micro: int) -> Path | None:
    """The file that says these shapes have been compiled into the Inductor cache; None when there is no lasting
    cache."""
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not cache:
        return None
    shape = [
        config.dim,
        config.heads,
        config.kv_heads,
        config.head_size,
        config.ffn,
        config.vocab_size,
        config.qk_norm,
        spec.seq_len,
        micro,
        dtype,
    ]
    digest = hashlib.sha256(json.dumps([shape, torch.__version__, spec.graph()]).encode()).hexdigest()
    return Path(cache) / f"warm-{digest[:16]}"
