"""Checkpoints: a directory per step that appears whole or not at all, written by all ranks and read by any number of
them.

Every parameter and every optimizer state is a flat fp32 tensor of which a rank holds some :class:`Piece`; so a
checkpoint of FSDP2 on eight ranks is read by ZeRO-3 on four or by one process. ``torch.distributed.checkpoint`` writes
the pieces, a file per rank, with an index of who holds what. Rank 0 adds ``state.json`` (step, position in the data,
fingerprints, sizes of the files) when all are done, and renames. Writing happens in a thread, from a copy, over a
process group of its own. Random numbers need no saving: data order follows from (seed, position), and a step draws
none.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from model.running.files import sync, write_json

warnings.filterwarnings(
    "ignore", message="torch.distributed is disabled"
)  # one process writes and reads alone: meant so


OWN_DISK = "PIPELINE_OWN_DISK"
"""Set where machines that train together share no folder: each keeps the files of its own ranks, and whoever starts the
ranks brings the others' files before they read."""


class CheckpointMismatch(ValueError):
    """A checkpoint that was made from other data, another tokenizer or another spec."""


@dataclass(frozen=True)
class Piece:
    """Elements ``begin`` and on of the flattened tensor ``name``, which has ``total``; ``values`` [n] is written, or
    read into."""

    name: str
    begin: int
    total: int
    values: Tensor

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """Where it lies, in DCP's words."""
        return ChunkStorageMetadata(torch.Size([self.begin]), torch.Size([self.values.numel()]))


def _by_place(pieces: Iterable[Piece]) -> dict[tuple[str, int], Piece]:
    return {(p.name, p.begin): p for p in pieces if p.values.numel()}


def _place(index: MetadataIndex) -> tuple[str, int]:
    assert index.offset is not None  # every item is a part of a tensor
    return index.fqn, index.offset[0]


class _Write(DefaultSavePlanner):
    """Tells DCP which part of each tensor this rank writes; DCP checks that together they are all of it."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = _by_place(pieces)

    def create_local_plan(self) -> SavePlan:
        return SavePlan(
            [
                WriteItem(
                    MetadataIndex(p.name, p.chunk.offsets),
                    WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        p.chunk, TensorProperties.create_from_tensor(p.values), torch.Size([p.total])
                    ),
                )
                for p in self.pieces.values()
            ]
        )

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.pieces[_place(index)].values


class _Read(DefaultLoadPlanner):
    """Finds what this rank's pieces need in the pieces that were written."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = _by_place(pieces)

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None  # DCP sets the planner up before it asks
        # an index can hold nothing else, see _INDEX
        known = cast(dict[str, TensorStorageMetadata], self.metadata.state_dict_metadata)
        return LoadPlan(
            [
                item
                for p in self.pieces.values()
                for item in create_read_items_for_chunk_list(p.name, known[p.name], [p.chunk])
            ]
        )

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.pieces[_place(index)].values


_INDEX = frozenset(
    {
        ("pathlib", "PosixPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties")
        ),
        ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    }
)
"""What the index of a checkpoint consists of, besides data types."""


class _Index(pickle.Unpickler):
    """Reads the index of a checkpoint, which DCP pickles, with the names that it consists of and no others: a directory
    that came from another machine is data and never code."""

    def find_class(self, module: str, name: str, /) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in _INDEX:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """DCP's reader with an index that cannot run code."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with open(path, "rb") as file:
                index = _Index(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
            raise CheckpointMismatch(f"{path.parent} cannot be read: {error}; remove it to go on without it") from None
        if not isinstance(index, Metadata):
            raise CheckpointMismatch(f"{path.parent} has no index; remove it to go on without it")
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class Checkpoints:
    """The checkpoints of one run under ``root``, which all ranks see; the newest ``keep`` stay, and the one with the
    lowest validation loss."""

    def __init__(self, root: Path, keep: int, fingerprints: dict[str, Any], rank: int = 0, world: int = 1) -> None:
        self.root, self.keep, self.fingerprints, self.rank, self.world = root, keep, fingerprints, rank, world
        # every rank is in it, so that it is no number
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if world > 1 else None
        self._own = bool(os.environ.get(OWN_DISK)) and world > 1
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, pieces: Iterable[Piece], state: dict[str, Any]) -> None:
        """Copy this rank's ``pieces`` now and write them in the background, on all ranks together.

        Raises what the previous write raised (OSError: disk full, on whichever rank).
        """
        self.wait()
        copy = [replace(p, values=p.values.detach().to("cpu", copy=True).reshape(-1)) for p in pieces]
        self._thread = threading.Thread(target=self._guard, args=(copy, dict(state)), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the last write is on disk; raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _guard(self, pieces: list[Piece], state: dict[str, Any]) -> None:
        try:
            self._write(pieces, state)
        except BaseException as error:
            self._error = error

    def _write(self, pieces: list[Piece], state: dict[str, Any]) -> None:
        final = self.root / f"step-{state['step']:08d}"
        partial = self.root / f".{final.name}.tmp"
        try:
            save(
                {},
                storage_writer=FileSystemWriter(partial),
                planner=_Write(pieces),
                process_group=self._group,
                no_dist=self.world == 1,
            )
            if self._own:
                self._publish_own(partial, final, state)
            elif self.rank == 0:
                self._publish(partial, final, state, secrets.token_hex(8), _sizes(partial))
        except (OSError, CheckpointException) as error:
            shutil.rmtree(partial, ignore_errors=True)
            why = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            text = (
                f"checkpoint {final} could not be written ({why}); free disk space and run again; earlier checkpoints"
                " are whole"
            )
            code = getattr(why, "errno", None)  # kept: who catches this tells a full disk from another fault by it
            raise (OSError(text) if code is None else OSError(code, text, str(final))) from error

    def _publish_own(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        """On every machine the first rank publishes what lies on its disk, with the names of all files. Collective."""
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if first:
            partial.mkdir(parents=True, exist_ok=True)  # replicas write nothing
        told: list[Any] = [None] * self.world
        mine = (secrets.token_hex(8), _sizes(partial) if first else {})
        dist.all_gather_object(told, mine, group=self._group)
        if first:
            files = {name: size for _, sizes in told for name, size in sizes.items()}
            self._publish(partial, final, state, told[0][0], files)

    def _publish(self, partial: Path, final: Path, state: dict[str, Any], name: str, files: dict[str, int]) -> None:
        """What all ranks have written and synced becomes a checkpoint; ``name`` tells it from another attempt's."""
        record = {**state, "fingerprints": self.fingerprints, "files": files, "id": name}
        write_json(partial / "state.json", record)
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        sync(self.root)
        self._prune()

    def _prune(self) -> None:
        whole = self.whole()
        if self._own:
            whole = [path for path in sorted(self.root.glob("step-*")) if (path / "state.json").is_file()]
        scores = {path: json.loads((path / "state.json").read_text())["val_loss"] for path in whole}
        known = [path for path in whole if scores[path] is not None]
        best = {min(known, key=lambda path: scores[path])} if known else set()
        for path in whole[: -self.keep]:
            if path not in best:
                shutil.rmtree(path, ignore_errors=True)

    def whole(self) -> list[Path]:
        """Checkpoints whose files all have the sizes they were written with, oldest first."""
        return [path for path in sorted(self.root.glob("step-*")) if _is_whole(path)]

    def load(self, pieces: Iterable[Piece]) -> dict[str, Any] | None:
        """Fill ``pieces`` from the newest whole checkpoint and give its state; None, and nothing filled, when there is
        none. Collective.

        Raises :class:`CheckpointMismatch` when it was made from something else, and OSError when this rank does not see
        what rank 0 sees.
        """
        path = self._newest()
        if path is None:
            return None
        if not _is_whole(path):
            raise OSError(
                f"{path}: rank 0 sees this checkpoint and rank {self.rank} does not; machines that train together need"
                " PIPELINE_HOME in a shared folder, or a bucket (PIPELINE_STORE)"
            )
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, value in self.fingerprints.items():
            was = state["fingerprints"].get(name)
            if was != value:
                raise CheckpointMismatch(
                    f"{path} was made from another {name} ({was}, now {value}); remove {self.root} to start anew"
                )
        _Reader(path).read_metadata()  # DCP would bury what is wrong with it
        load({}, storage_reader=_Reader(path), planner=_Read(pieces), no_dist=True)
        return state

    def _newest(self) -> Path | None:
        """The newest whole checkpoint that rank 0 sees; what killed attempts left behind goes."""
        newest: list[str | None] = [None]
        if self.rank == 0:
            for partial in self.root.glob(".step-*.tmp"):
                shutil.rmtree(partial, ignore_errors=True)
            newest = [path.name for path in self.whole()[-1:]] or [None]
        if self._group is not None:
            dist.broadcast_object_list(newest, src=0, group=self._group)
        return self.root / newest[0] if newest[0] else None


def _sizes(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_size for f in sorted(folder.iterdir())}


def _is_whole(path: Path) -> bool:
    try:
        files = json.loads((path / "state.json").read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False
