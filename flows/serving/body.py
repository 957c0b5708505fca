"""What goes over the wire."""

from __future__ import annotations

from typing import Any, TypeAlias

Body: TypeAlias = dict[str, Any]
"""A JSON object of OpenAI's API, as it is sent; what it may hold is described by the models in ``replies``."""
