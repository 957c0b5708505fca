"""What every config section is: frozen, typed, with unknown keys refused. A section is what one stage reads.

A section's fields decide the bytes a stage makes, so they are part of its cache key. Fields made with :func:`where`
say where things are or how fast to make them; they are left out of the key and recorded beside it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

_LOGIN = re.compile(r"[A-Za-z][\w+.-]*://[^\s/@]*:[^\s/@]+@")
Progress = Callable[[int, int | None, str], None]
"""Called as ``progress(done, total, unit)`` from long work; ``total`` is None when unknown."""


def quiet(done: int, total: int | None, unit: str) -> None:
    """The progress callback that shows nothing."""


class Section(BaseModel):
    """Base of all sections. Immutable; a key that is not a field is an error, so a typing mistake cannot pass
    silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _no_password(cls, values: Any) -> Any:
        """Raises ValueError, which does not repeat it, for an address with a password: a config is kept with every
        run."""
        for name, value in values.items() if isinstance(values, dict) else ():
            texts = value if isinstance(value, (list, tuple)) else (value,)
            if any(isinstance(text, str) and _LOGIN.search(text) for text in texts):
                raise ValueError(
                    f"{name} has an address with a password in it, which would be kept with every run; credentials"
                    " belong into the environment (OPENAI_API_KEY, AWS_SECRET_ACCESS_KEY, HF_TOKEN)"
                )
        return values

    def identity(self) -> dict[str, Any]:
        """The part of this section that enters a cache key, as plain JSON values."""
        return {
            name: plain(getattr(self, name)) for name, info in type(self).model_fields.items() if not _is_where(info)
        }


def plain(value: object) -> Any:
    """JSON form of a config value: nested sections by their identity, dataclasses by their fields, tuples as lists."""
    if isinstance(value, Section):
        return value.identity()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def where(default: Any = ..., **options: Any) -> Any:
    """A pydantic ``Field`` for something that does not change a stage's bytes (paths, worker counts): not in the cache
    key."""
    return Field(default, json_schema_extra={"where": True}, **options)


def _is_where(info: FieldInfo) -> bool:
    return bool(isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("where"))
