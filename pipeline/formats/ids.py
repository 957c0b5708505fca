"""The id that a record brings."""

from __future__ import annotations

from typing import Any


def own_id(record: Any, id_fields: tuple[str, ...]) -> str | None:
    """The input's own id as a string, from the first of ``id_fields`` that holds a string or an integer."""
    if isinstance(record, dict):
        for field in id_fields:
            value = record.get(field)
            if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
                return str(value)
    return None
