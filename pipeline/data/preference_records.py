"""Preference pairs from sources, in normal form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.data.records import Kind, Losses, read_records
from pipeline.formats.preference import as_preference
from pipeline.sources import Source
from pipeline.sources.teaching import teaching_preferences

KIND = Kind("preference", as_preference, teaching_preferences)


def read_preferences(
    sources: Sequence[Source], *, max_bad_share: float = 0.1, ignored: Sequence[str] = (), losses: Losses | None = None
) -> Iterator[dict[str, Any]]:
    """``{"prompt": [messages], "chosen": str, "rejected": str, "margin"?: float}`` of every usable pair; see
    :func:`pipeline.data.records.read_records`."""
    return read_records(KIND, sources, max_bad_share, ignored, losses or Losses())
