"""Texts on their way into documents."""

from __future__ import annotations


def whole(text: str) -> str:
    """``text`` itself, or a copy with lone surrogates (legal in JSON, not in UTF-8) as U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
