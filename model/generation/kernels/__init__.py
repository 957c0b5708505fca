"""Compiled arithmetic of generation on a CPU (numba; compiled at first call, never at import, and kept for later
processes)."""

from __future__ import annotations

from pathlib import Path

from model.running.kernel_cache import cache_by_source

cache_by_source(Path(__file__).parent)
