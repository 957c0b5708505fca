"""``arithmetic``: the built-in source about sums, spelling, sorting and comparing, which generators make
(:mod:`pipeline.problems.arithmetic`). Here is only what tells one state of it from another."""

from __future__ import annotations

import hashlib

from pipeline.sources import SourceFile

NAME = "arithmetic"
SEED = 2026
LEVELS = (1, 2, 3)
"""How hard its problems are, of the generators' three."""
STATEMENTS, PER_DOCUMENT = 3000, 24
"""Statements of each task, language and level, and how many stand in one document."""
CHATS = 1500
"""Chats of each task and language, over all levels."""


def list_arithmetic() -> list[SourceFile]:
    """The source as one file that is nowhere: its content follows from these numbers and the generators' code."""
    facts = f"{NAME} {SEED} {LEVELS} {STATEMENTS} {PER_DOCUMENT} {CHATS}"
    return [SourceFile(NAME, NAME, 0, hashlib.sha256(facts.encode()).hexdigest())]
