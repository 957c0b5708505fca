"""Token datasets as rows of fixed length, and the order they are read in.

A dataset is a directory (``meta.json``, flat token files, offsets). Rows of ``seq_len`` slots come from it in one of
three ways: windows of the document stream, conversations packed into rows, preference pairs packed into rows. Position
in the data is one integer, the number of rows read so far; the row at a position follows from the seed alone, so any
number of ranks resumes anywhere without replaying. Nothing here needs torch.

In the document stream the end-of-text token both ends a document and begins the next: each token is predicted once,
the first of a document from that token alone, and documents in one row do not see each other.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PADDING = -1
"""Document number of unused slots."""


@dataclass(frozen=True)
class Split:
    """One split of a token dataset: flat ``tokens``, ``offsets`` [sequences + 1], per token whether it is a target, and
    the UTF-8 ``bytes`` of the text behind it; of each sequence's text in ``sizes`` [sequences] (null: not known)."""

    tokens: NDArray
    offsets: NDArray
    mask: NDArray | None
    bytes: int
    meta: dict
    sizes: NDArray | None = None

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    def spelled(self, tokens: int) -> float:
        """UTF-8 bytes of the text that the first ``tokens`` tokens come from; a sequence that is cut has its share.

        Counted on the text and not on the tokens, since what a token spells is its tokenizer's secret.
        """
        if self.sizes is None:
            return self.bytes * tokens / max(1, len(self.tokens))
        return float(np.interp(tokens, self.offsets, np.concatenate([[0], np.cumsum(self.sizes)])))


def read_meta(path: str | Path) -> dict:
    """``meta.json`` of a token dataset. Raises ValueError when it is none."""
    try:
        meta = json.loads((Path(path) / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no meta.json; a token dataset directory is needed") from None
    if meta.get("format") != "tokens/1":
        raise ValueError(f"{path}/meta.json: format {meta.get('format')!r}, not tokens/1")
    return meta


def read_split(path: str | Path, split: str) -> Split:
    """A split, memory-mapped. An absent split is empty. Raises ValueError when files do not fit each other."""
    path, meta = Path(path), read_meta(path)
    dtype = np.dtype(meta["dtype"])
    if not (path / f"{split}.idx.npy").is_file():
        return Split(np.zeros(0, dtype), np.zeros(1, np.int64), None, 0, meta)
    offsets = np.load(path / f"{split}.idx.npy")
    size = (path / f"{split}.bin").stat().st_size // dtype.itemsize
    if len(offsets) == 0 or offsets[-1] != size:
        raise ValueError(
            f"{path}/{split}.bin holds {size} tokens, its index says {offsets[-1] if len(offsets) else 'nothing'}; the"
            " dataset is damaged"
        )
    tokens = np.memmap(path / f"{split}.bin", dtype, "r") if size else np.zeros(0, dtype)
    mask = None
    if (path / f"{split}.mask.bin").is_file() and size:
        mask = np.memmap(path / f"{split}.mask.bin", np.uint8, "r")
        if len(mask) != size:
            raise ValueError(
                f"{path}/{split}.mask.bin has {len(mask)} entries for {size} tokens; the dataset is damaged"
            )
    sizes = np.load(path / f"{split}.bytes.npy") if (path / f"{split}.bytes.npy").is_file() else None
    return Split(tokens, offsets, mask, int(meta.get("splits", {}).get(split, {}).get("bytes", 0)), meta, sizes)


def fingerprint(path: str | Path) -> str:
    """16 hex of a file's, or a directory's files', names, sizes and contents (first and last MiB of each). An artifact
    is told by its manifest alone, which has all of that: who made it and when lies beside its files, and is another's
    when the same bytes are made or fetched again."""
    digest, path = hashlib.sha256(), Path(path)
    if (path / "manifest.json").is_file():
        return hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()[:16]
    for file in [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file()):
        with open(file, "rb") as handle:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode() + handle.read(1 << 20))
            handle.seek(max(0, size - (1 << 20)))
            digest.update(handle.read())
    return digest.hexdigest()[:16]


@dataclass
class Rows:
    """Slots of some rows: ``ids``, ``targets``, ``weight`` (1 at targets), ``doc`` [rows, seq_len]; ``sequence`` is the
    dataset's number."""

    ids: NDArray
    targets: NDArray
    weight: NDArray
    doc: NDArray
    sequence: NDArray

    @classmethod
    def empty(cls, count: int, length: int, pad: int) -> Rows:
        ids = np.full((count, length), pad, np.int64)
        doc = np.full((count, length), PADDING, np.int32)
        return cls(ids, ids.copy(), np.zeros((count, length), np.float32), doc, doc.astype(np.int64))


class Windows:
    """Consecutive windows of a document stream; ``tail`` keeps the last, shorter one (for validation), padded."""

    def __init__(self, split: Split, seq_len: int, tail: bool = False) -> None:
        self.split, self.seq_len = split, seq_len
        predictable = max(0, len(split.tokens) - 1)
        self.rows = -(-predictable // seq_len) if tail or predictable < seq_len else predictable // seq_len
        self.all_targets = predictable
        self.units = np.minimum(seq_len, predictable - np.arange(self.rows) * seq_len)
        self.filled = self.units

    def targets_per_byte(self, rows: int) -> float:
        """Targets of the first ``rows`` rows over the UTF-8 bytes of their text; 0 where that is not known."""
        targets = int(self.units[:rows].sum())
        return targets / size if (size := self.split.spelled(targets + 1)) else 0.0

    def read(self, numbers: NDArray) -> Rows:
        """The rows with these numbers; a negative number gives an empty row."""
        out = Rows.empty(len(numbers), self.seq_len, self.split.meta["pad_id"])
        eos = self.split.meta["eos_id"]
        for r, number in enumerate(numbers):
            if number < 0:
                continue
            begin = int(number) * self.seq_len
            piece = np.asarray(self.split.tokens[begin : begin + self.seq_len + 1], np.int64)
            n = len(piece) - 1
            out.ids[r, :n], out.targets[r, :n], out.weight[r, :n] = piece[:-1], piece[1:], 1.0
            out.doc[r, :n] = np.cumsum(piece[:-1] == eos)
        return out


class Packed:
    """Whole sequences packed into rows by best-fit decreasing; ``together`` sequences in a row stay in one row (2:
    pairs).

    A single sequence that is longer than a row is cut. Sequences that belong together are never: half of a pair says
    nothing, and who encoded them had the row's length as the limit.
    """

    def __init__(self, split: Split, seq_len: int, together: int = 1) -> None:
        if split.sequences % together:
            raise ValueError(f"a dataset of pairs has an odd number of sequences ({split.sequences}); it is damaged")
        self.split, self.seq_len, self.together = split, seq_len, together
        lengths = np.maximum(np.diff(split.offsets) - 1, 0)  # a sequence's last token is only a target
        whole = lengths.reshape(-1, together).sum(1)  # [groups]
        if together > 1 and (whole > seq_len).any():
            raise ValueError(
                f"{int((whole > seq_len).sum())} groups of {together} sequences are longer than a row of seq_len ="
                f" {seq_len}; encode them for this length"
            )
        self.truncated = int((lengths > seq_len).sum())
        self.lengths = np.minimum(lengths, seq_len)
        whole = np.minimum(whole, seq_len)
        self.members = pack(whole, seq_len)
        self.rows = len(self.members)
        self.filled = np.array([int(whole[m].sum()) for m in self.members], np.int64)
        self.units = np.array([self._units(m) for m in self.members], np.int64)
        self.all_targets = int(lengths.sum()) if split.mask is None else int(np.sum(split.mask, dtype=np.int64))

    def targets_per_byte(self, rows: int) -> float:
        """Targets over UTF-8 bytes of the whole split, of which any ``rows`` are taken to be typical; 0: not known."""
        return self.all_targets / self.split.bytes if self.split.bytes else 0.0

    def _units(self, members: list[int]) -> int:
        """What the loss of a row is divided by: targets, or pairs."""
        if self.together > 1:
            return len(members)
        return sum(int(self._piece(s)[1].sum()) for s in members)

    def _piece(self, sequence: int) -> tuple[NDArray, NDArray]:
        begin = int(self.split.offsets[sequence])
        end = begin + int(self.lengths[sequence]) + 1
        tokens = np.asarray(self.split.tokens[begin:end], np.int64)
        mask = np.ones(len(tokens), np.uint8) if self.split.mask is None else self.split.mask[begin:end]
        return tokens, mask[1:]

    def read(self, numbers: NDArray) -> Rows:
        """The rows with these numbers; a negative number gives an empty row."""
        out = Rows.empty(len(numbers), self.seq_len, self.split.meta["pad_id"])
        for r, number in enumerate(numbers):
            at = 0
            for member in self.members[number] if number >= 0 else ():
                for s in range(member * self.together, (member + 1) * self.together):
                    tokens, mask = self._piece(s)
                    n = len(tokens) - 1
                    if n < 1:
                        continue
                    here = np.s_[r, at : at + n]
                    out.ids[here], out.targets[here], out.weight[here] = tokens[:-1], tokens[1:], mask
                    out.doc[here] = out.sequence[here] = s
                    at += n
        return out


def pack(lengths: NDArray, capacity: int) -> list[list[int]]:
    """Best-fit decreasing: items (all <= capacity) to few rows, the same for the same lengths. Items of length 0 are
    left out."""
    free: list[int] = []  # distinct free lengths of open rows, sorted
    open_rows: dict[int, list[int]] = {}
    rows: list[list[int]] = []
    for item in np.argsort(-lengths, kind="stable"):
        length = int(lengths[item])
        if length == 0:
            break
        k = bisect.bisect_left(free, length)
        if k == len(free):
            row, left = len(rows), capacity
            rows.append([])
        else:
            left = free[k]
            row = open_rows[left].pop()
            if not open_rows[left]:
                del open_rows[left], free[k]
        rows[row].append(int(item))
        if left - length:
            if left - length not in open_rows:
                bisect.insort(free, left - length)
                open_rows[left - length] = []
            open_rows[left - length].append(row)
    return [sorted(row) for row in rows]


class Order:
    """Row numbers by position: one seeded permutation after the other, each of all ``rows``."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self._epoch, self._permutation = -1, np.zeros(0, np.int64)

    def __call__(self, begin: int, end: int) -> NDArray:
        """Numbers of the rows at positions ``begin`` to ``end`` (exclusive), int64."""
        positions = np.arange(begin, end)
        out = np.empty(len(positions), np.int64)
        for epoch in np.unique(positions // self.rows):
            if epoch != self._epoch:
                self._epoch = int(epoch)
                self._permutation = np.random.Generator(np.random.PCG64([self.seed, self._epoch])).permutation(
                    self.rows
                )
            here = positions // self.rows == epoch
            out[here] = self._permutation[positions[here] % self.rows]
        return out


def share(numbers: NDArray, rank: int, world: int, micro: int) -> NDArray:
    """A rank's rows of a global batch as [micro-batches, micro], filled with -1 (empty) so that all ranks do equally
    many."""
    each = -(-len(numbers) // world)
    count = -(-each // micro)
    out = np.full(count * micro, -1, np.int64)
    mine = numbers[rank::world]
    out[: len(mine)] = mine
    return out.reshape(count, micro)
