"""Checkpoints: a directory per step that appears whole or not at all.

``model.safetensors`` (fp32 parameters), ``optimizer.safetensors`` and ``state.json`` (step, position in the data,
fingerprints, sizes of the files) are written to a hidden directory, synced, and renamed. Writing happens in a thread, from
a copy. Random numbers need no saving: data order follows from (seed, position), and a step draws none.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class CheckpointMismatch(ValueError):
    """A checkpoint that was made from other data, another tokenizer or another spec."""


class Checkpoints:
    """The checkpoints of one run under ``root``; the newest ``keep`` stay, and the one with the lowest validation loss."""

    def __init__(self, root: Path, keep: int, fingerprints: dict[str, Any]) -> None:
        self.root, self.keep, self.fingerprints = root, keep, fingerprints
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Copy ``tensors`` now and write them in the background. Raises what the previous write raised (OSError: disk full)."""
        self.wait()
        copy = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
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

    def _guard(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        try:
            self._write(tensors, state)
        except BaseException as error:
            self._error = error

    def _write(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        final = self.root / f"step-{state['step']:08d}"
        partial = self.root / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            params = {k: v for k, v in tensors.items() if k.startswith("param:")}
            save_file({k.removeprefix("param:"): v for k, v in sorted(params.items())}, partial / "model.safetensors")
            save_file({k: v.clone() for k, v in sorted(tensors.items()) if k not in params}, partial / "optimizer.safetensors")
            sizes = {f.name: f.stat().st_size for f in sorted(partial.iterdir())}
            record = {**state, "fingerprints": self.fingerprints, "files": sizes}
            (partial / "state.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            for path in (*partial.iterdir(), partial):
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            _sync(self.root)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"checkpoint {final} could not be written ({error}); free disk space and run again; earlier checkpoints are whole") from error
        self._prune()

    def _prune(self) -> None:
        whole = self.whole()
        scores = {path: json.loads((path / "state.json").read_text())["val_loss"] for path in whole}
        known = [path for path in whole if scores[path] is not None]
        best = {min(known, key=lambda path: scores[path])} if known else set()
        for path in whole[: -self.keep]:
            if path not in best:
                shutil.rmtree(path, ignore_errors=True)

    def whole(self) -> list[Path]:
        """Checkpoints whose files all have the sizes they were written with, oldest first."""
        return [path for path in sorted(self.root.glob("step-*")) if _is_whole(path)]

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole checkpoint: full tensors (as given to :meth:`save`) and its state; None when there is none.

        Raises :class:`CheckpointMismatch` when it was made from something else.
        """
        for partial in self.root.glob(".step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        whole = self.whole()
        if not whole:
            return None
        path = whole[-1]
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, value in self.fingerprints.items():
            was = state["fingerprints"].get(name)
            if was != value:
                raise CheckpointMismatch(f"{path} was made from another {name} ({was}, now {value}); remove {self.root} to start anew")
        tensors = {f"param:{k}": v for k, v in load_file(path / "model.safetensors").items()}
        return tensors | load_file(path / "optimizer.safetensors"), state

    def clear(self) -> None:
        """Remove all checkpoints (the run's model is written)."""
        self.wait()
        shutil.rmtree(self.root, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    try:
        files = json.loads((path / "state.json").read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
