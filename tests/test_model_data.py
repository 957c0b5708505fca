"""Rows and order: every token is a target once, packing loses nothing, position alone decides what is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokens.rows import PADDING, Order, Packed, Windows, fingerprint, pack, read_split, share


def write_tokens(
    path: Path,
    sequences: list[list[int]],
    masks: list[list[int]] | None = None,
    kind: str = "text",
    vocab: int = 64,
    val: list[list[int]] | None = None,
    val_masks: list[list[int]] | None = None,
) -> Path:
    """A token dataset directory as the encode stage writes it."""
    path.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, parts, marks in (("train", sequences, masks), ("val", val or [], val_masks)):
        flat = [t for s in parts for t in s]
        np.array(flat, np.uint16).tofile(path / f"{name}.bin")
        np.save(path / f"{name}.idx.npy", np.cumsum([0, *map(len, parts)]).astype(np.int64))
        if marks is not None:
            np.array([m for s in marks for m in s], np.uint8).tofile(path / f"{name}.mask.bin")
        splits[name] = {"sequences": len(parts), "tokens": len(flat), "bytes": 3 * len(flat), "supervised": len(flat)}
    meta = {
        "format": "tokens/1",
        "kind": kind,
        "dtype": "uint16",
        "vocab_size": vocab,
        "eos_id": 0,
        "bos_id": 1,
        "pad_id": 0,
    }
    meta |= {"tokenizer": "t", "splits": splits}
    (path / "meta.json").write_text(json.dumps(meta))
    return path


def test_windows_predict_every_token_once_and_part_documents_at_the_end_token(tmp_path) -> None:
    stream = [[5, 6, 7, 0], [8, 9, 0], [10, 11, 12, 13, 0]]
    split = read_split(write_tokens(tmp_path, stream), "train")
    rows = Windows(split, 4, tail=True).read(np.arange(3))
    assert rows.targets[rows.weight > 0].tolist() == [t for s in stream for t in s][1:]
    assert rows.ids[0].tolist() == [5, 6, 7, 0] and rows.doc[0].tolist() == [0, 0, 0, 1]  # 0 begins what 8 belongs to
    assert Windows(split, 4).rows == 2 and Windows(split, 4).all_targets == 11
    assert Windows(split, 100).rows == 1  # a dataset shorter than a row is still read


def test_packed_rows_hold_every_sequence_with_its_own_targets(tmp_path) -> None:
    sequences = [[1, 10, 11, 2], [1, 20, 2], [1, 30, 31, 32, 33, 2], [1, 40, 2], list(range(1, 30))]
    masks = [[0, 0, 1, 1], [0, 1, 1], [0, 0, 0, 0, 1, 1], [0, 1, 1], [0] * 20 + [1] * 9]
    rows = Packed(read_split(write_tokens(tmp_path, sequences, masks, "chat"), "train"), 8)
    assert rows.truncated == 1
    read = rows.read(np.arange(rows.rows))
    for number in range(4):
        here = read.doc == number
        assert (
            read.ids[here].tolist() == sequences[number][:-1] and read.targets[here].tolist() == sequences[number][1:]
        )
        assert read.weight[here].astype(int).tolist() == masks[number][1:]
    assert rows.units.sum() == read.weight.sum()
    assert (read.weight[read.doc == PADDING] == 0).all()


def test_pairs_stay_in_one_row(tmp_path) -> None:
    sequences = [[1] * (3 + i % 5) for i in range(20)]
    rows = Packed(
        read_split(write_tokens(tmp_path, sequences, [[1] * len(s) for s in sequences], "pairs"), "train"),
        16,
        together=2,
    )
    for number in range(rows.rows):
        found = set(rows.read(np.array([number])).sequence[0]) - {PADDING}
        assert all(s ^ 1 in found for s in found)
    assert rows.units.sum() == 10


@given(st.lists(st.integers(0, 50), max_size=200), st.integers(50, 80))
def test_packing_fits_and_keeps_all(lengths: list[int], capacity: int) -> None:
    rows = pack(np.array(lengths, np.int64), capacity)
    assert sorted(i for row in rows for i in row) == [i for i, n in enumerate(lengths) if n]
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    assert len(rows) <= 1 + 2 * sum(lengths) / capacity


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_order_is_the_same_from_any_position_and_for_any_number_of_ranks(
    rows: int, begin: int, count: int, world: int, micro: int
) -> None:
    whole = Order(rows, 3)(0, begin + count)
    assert (Order(rows, 3)(begin, begin + count) == whole[begin:]).all()
    assert sorted(whole[:rows].tolist()) == list(range(rows)) or begin + count < rows
    parts = [share(whole[begin:], rank, world, micro) for rank in range(world)]
    assert len({p.shape for p in parts}) == 1
    assert sorted(n for p in parts for n in p.ravel() if n >= 0) == sorted(whole[begin:].tolist())


def test_a_damaged_dataset_is_refused(tmp_path) -> None:
    write_tokens(tmp_path, [[1, 2, 3]])
    (tmp_path / "train.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match="damaged"):
        read_split(tmp_path, "train")
    with pytest.raises(ValueError, match="token dataset"):
        read_split(tmp_path / "nothing", "train")


def test_an_artifact_is_the_same_input_whoever_made_it_and_whenever(tmp_path):
    """A training that was interrupted goes on from an input that was made or fetched again, byte for byte."""
    for name, weights, when in (("one", "ab", "2025"), ("again", "ab", "2026"), ("other", "xy", "2026")):
        place = tmp_path / name
        place.mkdir()
        (place / "model.safetensors").write_text(weights)
        (place / "manifest.json").write_text(json.dumps({"model.safetensors": {"bytes": 2, "sha256": weights}}))
        (place / "lineage.json").write_text(json.dumps({"created": when}))
    one, again, other = (fingerprint(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again != other
    (tmp_path / "again" / "manifest.json").unlink()
    assert fingerprint(tmp_path / "again") != one, "a folder that is no artifact is known by its files"
