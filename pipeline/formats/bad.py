"""Why a record cannot be used."""

from __future__ import annotations

from storage.errors import Refused


class BadRecord(Refused):
    """A record that cannot be used. ``reason`` is a word to count by, ``detail`` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
