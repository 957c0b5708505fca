"""Every record form that the field's projects use, recognised without a flag and brought to one normal form each.

A record is a parsed JSON value (or a table row as a dict). It is one of three kinds:

* ``text``: ``{"text": …}`` or another of the configured text fields;
* ``chat``: normal form ``{"messages": [{"role", "content"}, …]}`` with the roles system, user, assistant and tool,
  and ``"learn": False`` in answers that are context only;
* ``preference``: normal form ``{"prompt": [messages], "chosen": str, "rejected": str}``.

Whatever cannot be brought there raises :class:`BadRecord` with a reason that is counted and reported; nothing is
guessed, and a field that an answer may depend on is used or refused by name (:mod:`pipeline.formats.fields`).
"""

from __future__ import annotations

from typing import Any

from pipeline.formats.bad import BadRecord
from pipeline.formats.chat import CHAT_MARKS, as_chat, is_chat
from pipeline.formats.preference import as_preference, is_preference

__all__ = ["MARKS", "BadRecord", "as_chat", "as_preference", "kind_of", "own_id", "text_of"]

MARKS = CHAT_MARKS | {"chosen", "rejected"}


def kind_of(record: Any, text_fields: tuple[str, ...]) -> str:
    """``"text"``, ``"chat"`` or ``"preference"``. Raises BadRecord(not_an_object | unknown_form).

    Chat and preference forms win over a text field: data sets such as Alpaca's carry a pre-rendered ``text`` beside
    the turns, and the turns are the better information.
    """
    if isinstance(record, dict):
        if MARKS.isdisjoint(record):
            if any(field in record for field in text_fields):
                return "text"
        elif is_preference(record):
            return "preference"
        elif is_chat(record):
            return "chat"
        elif any(isinstance(record.get(field), str) for field in text_fields):
            return "text"
        raise BadRecord("unknown_form", "fields " + ", ".join(sorted(map(str, record))[:8]))
    if isinstance(record, list):
        return "chat"
    raise BadRecord("not_an_object", f"a JSON {_json_type(record)}")


def text_of(record: dict[str, Any], text_fields: tuple[str, ...]) -> str:
    """The text of a text record. Raises BadRecord(wrong_type | empty_text)."""
    for field in text_fields:
        value = record.get(field)
        if isinstance(value, str):
            if not value or value.isspace():
                raise BadRecord("empty_text", f"{field} is blank")
            return value
        if value is not None:
            raise BadRecord("wrong_type", f"{field} is a JSON {_json_type(value)}, not a string")
    raise BadRecord("empty_text", " and ".join(f for f in text_fields if f in record) + " is null")


def own_id(record: Any, id_fields: tuple[str, ...]) -> str | None:
    """The input's own id as a string, from the first of ``id_fields`` that holds a string or an integer."""
    if isinstance(record, dict):
        for field in id_fields:
            value = record.get(field)
            if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
                return str(value)
    return None


def _json_type(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return names.get(type(value), type(value).__name__)
