"""What the initial model thinks of every answer, kept by all that decides it: the content of weights and data, the
arithmetic, and the code of the network.

The file lies in the run's own folder. A run with another loss, beta or rate takes it from the folder of a neighbour
(``<store>/dpo/*/_run``): it is removed with the artifact it lies in, and needs no keeper of its own.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import model.network.transformer
import model.tokens.rows
import model.training.loss
from model.objectives.pairs import PairBatch
from model.running.files import replacing
from model.running.setup import Ranks
from model.specs.tune import TuneSpec
from model.tokens.rows import share
from model.training.loop import Loop

Reference = dict[str, NDArray]
"""Log-probabilities (nats, float64) by split [sequences]."""


def reference_name(spec: TuneSpec, loop: Loop) -> str:
    """The file's name: the same for runs whose reference is equal to the bit."""
    choices, how = loop.choices, spec.how
    arithmetic = (choices.dtype, choices.attention, choices.compile, choices.micro_batch, how.fp8, how.engine)
    place = (loop.ranks.world, loop.ranks.device.type, torch.__version__, torch.get_num_threads())
    network = Path(model.network.transformer.__file__).parent.glob("*.py")
    code = [*network, Path(model.tokens.rows.__file__), Path(model.training.loss.__file__)]
    parts = [
        *(_content(path) for path in (Path(spec.init or ""), Path(spec.data))),
        hashlib.sha256(b"".join(file.read_bytes() for file in sorted(code))).hexdigest(),
        repr((spec.seq_len, asdict(spec.lora), spec.seed if spec.lora.rank else 0, arithmetic, place)),
    ]
    return f"reference-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.npz"


def _content(path: Path) -> str:
    """sha256 over names and contents of a folder's files, or of one file."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file()):
        with open(file, "rb") as handle:
            digest.update(f"{file.name} {hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def find_reference(run: Path, name: str, sizes: dict[str, int], ranks: Ranks) -> Reference | None:
    """The file of this name in ``run``, or in the same folder of a neighbouring artifact, where rank 0 sees a whole
    one. Collective."""
    found: Reference | None = None
    if ranks.rank == 0:
        neighbours = sorted(run.parent.parent.glob(f"*/{run.name}/{name}"))
        found = next((known for path in (run / name, *neighbours) if (known := _read(path, sizes))), None)
        if found:
            keep_reference(run, name, found, ranks)  # the neighbour may be removed before this run is resumed
    if not float(ranks.total(torch.tensor([float(found is not None)], dtype=torch.float64))):
        return None
    mine = found or {split: np.zeros(size) for split, size in sizes.items()}
    return {split: ranks.total(torch.from_numpy(values)).numpy() for split, values in mine.items()}


def _read(path: Path, sizes: dict[str, int]) -> Reference | None:
    """The arrays of a file; None where it is missing, damaged (zip's checksums tell) or of another shape."""
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            values = {split: np.asarray(file[split], np.float64) for split in sizes}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = all(values[split].shape == (size,) and np.isfinite(values[split]).all() for split, size in sizes.items())
    return values if whole else None


def keep_reference(run: Path, name: str, values: Reference, ranks: Ranks) -> None:
    """Write the file (rank 0), unless it is there."""
    if ranks.rank == 0 and not (run / name).is_file():
        with replacing(run / name) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, allow_pickle=False, **values)


def answers(loop: Loop, split: str, count: int) -> NDArray:
    """What the objective says of each sequence [count] under the current weights (a log-probability, a score), each
    rank a share. Collective."""
    ranks, values = loop.ranks, torch.zeros(count, dtype=torch.float64)
    rows = np.arange(getattr(loop.data, split).rows)
    for part in share(rows, ranks.rank, ranks.world, loop.choices.micro_batch):
        loop.meter.beat()
        batch = loop.batch(split, part, 1.0)
        assert isinstance(batch, PairBatch)
        with torch.no_grad():
            logp, _ = loop.engine(batch, answers=True)
        values[batch.sequences.cpu()] = logp.double().cpu()
    return ranks.total(values).numpy()
