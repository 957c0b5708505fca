"""What the modules of the command line give each other to build its grammar with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Protocol

Completer = Callable[..., list[str]]
"""Proposes words that begin with ``prefix``, when Tab is pressed."""


class AddCommand(Protocol):
    """Adds a command with its one-line description and its examples; gives its parser."""

    def __call__(self, name: str, text: str, examples: str = "") -> argparse.ArgumentParser: ...


def completed_by(action: argparse.Action, completer: Completer) -> None:
    """Let ``argcomplete`` propose values of an argument, which it looks for in this attribute."""
    vars(action)["completer"] = completer


def names(what: str) -> Completer:
    """A completer; what it proposes is found when Tab is pressed."""

    def completed(prefix: str, **_: object) -> list[str]:
        from flows.dag import stage_names
        from pipeline.config.tree import options, presets

        found = {
            "presets": presets,
            "stages": lambda: list(stage_names()),
            "options": lambda: [f"{o}=" for o in options()],
        }
        return [name for name in found[what]() if name.startswith(prefix)]

    return completed
