"""Records of other people's files."""

from __future__ import annotations

from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
"""A JSON object or table row as its file gives it, where nothing is known but that names are strings; or one in normal
form, with ``source``, ``path``, ``line`` and ``id`` beside what its kind holds (:mod:`pipeline.data.records`)."""
