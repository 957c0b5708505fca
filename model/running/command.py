"""The command line of a worker that takes its spec as JSON: ``python -m model.score --spec FILE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, TypeAlias

WorkerSpec: TypeAlias = dict[str, Any]
"""What a worker is to do, as its stage wrote it; each worker's module says what is in it."""


def read_spec(about: str | None) -> WorkerSpec:
    """The spec that the command line names; ``about`` is the worker's own description. What a launcher adds to the line
    is let be."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--spec", required=True, help="JSON file")
    return json.loads(Path(parser.parse_known_args()[0].spec).read_text(encoding="utf-8"))
