"""Which of the three kinds a record is: text, chat or preference."""

from __future__ import annotations

from typing import Any

from pipeline.formats.bad import BadRecord
from pipeline.formats.chat import CHAT_MARKS, is_chat
from pipeline.formats.preference import is_preference
from pipeline.formats.record import Record

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


def text_of(record: Record, text_fields: tuple[str, ...]) -> str:
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
