"""Chats from sources, in normal form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.data.records import Kind, Losses, read_records
from pipeline.formats.chat import as_chat
from pipeline.formats.record import Record
from pipeline.problems.arithmetic import arithmetic_chats
from pipeline.sources import Source
from pipeline.sources.teaching import teaching_chats

KIND = Kind("chat", as_chat, {"teaching": teaching_chats, "arithmetic": arithmetic_chats})


def read_chats(
    sources: Sequence[Source], *, max_bad_share: float = 0.1, ignored: Sequence[str] = (), losses: Losses | None = None
) -> Iterator[Record]:
    """``{"messages": [{"role", "content"}…]}`` of every usable chat; see :func:`pipeline.data.records.read_records`."""
    return read_records(KIND, sources, max_bad_share, ignored, losses or Losses())
