"""Files of a worker appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.running.files import replacing, write_json


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as temporary:
        temporary.write_text("{")
        assert json.loads(path.read_text()) == {"step": 1}
        raise RuntimeError("half way")
    assert json.loads(path.read_text()) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_what_a_killed_writer_left_is_overwritten_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with replacing(path) as temporary:
        temporary.write_bytes(b"old")
    temporary.write_bytes(b"torn")
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole" and [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_json_is_sorted_utf8_and_refuses_what_json_has_not_where_asked(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"b": "汉", "a": 1})
    assert (tmp_path / "new" / "a.json").read_text(encoding="utf-8") == '{\n "a": 1,\n "b": "汉"\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"loss": float("nan")}, finite=True)
    assert not (tmp_path / "b.json").exists()
