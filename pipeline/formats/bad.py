"""Why a record cannot be used."""

from __future__ import annotations


class BadRecord(ValueError):
    """A record that cannot be used. ``reason`` is a word to count by, ``detail`` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
