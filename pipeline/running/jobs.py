"""What travels between a data stage and its workers."""

from __future__ import annotations

from typing import Any, TypeAlias

Job: TypeAlias = dict[str, Any]
"""A piece of work, or what became of it: plain JSON, since it crosses processes and machines and is kept as a marker.
``shard`` names a job in errors; the other keys are the stage's own."""
