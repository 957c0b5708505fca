"""Specs as files: frozen dataclasses to JSON and back, every value checked when an object is made. No torch or
pydantic.

The ValueError of a wrong value names the field and the knob.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

Spec = TypeVar("Spec")


def need(condition: bool, message: str) -> None:
    """Raises ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def dump(value: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return dataclasses.asdict(value)


def parse(kind: type[Spec], values: dict[str, Any], path: str = "") -> Spec:
    """A config dataclass from JSON values; ValueError with the field's path for an unknown key, a wrong type or
    value."""
    hints = get_type_hints(kind)
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cast(Any, kind))
    names = {f.name for f in fields}
    given: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{path}{name}"
        need(name in names, f"{where}: unknown key; {kind.__name__} has {', '.join(sorted(names))}")
        given[name] = _read(hints[name], value, where)
    unset = dataclasses.MISSING
    missing = [f.name for f in fields if f.name not in given and f.default is unset and f.default_factory is unset]
    need(not missing, f"{path or kind.__name__}: missing {', '.join(missing)}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{path}{error}") from None


def _read(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(hint):
        need(isinstance(value, dict), f"{where}: must be a table, not {value!r}")
        return parse(cast(type[Any], hint), cast(dict[str, Any], value), f"{where}.")
    kind, inside = get_origin(hint), get_args(hint)
    if kind is dict:
        need(isinstance(value, dict), f"{where}: must be a table, not {value!r}")
        table = cast(dict[str, Any], value)
        return {name: _read(inside[1], one, f"{where}.{name}") for name, one in table.items()}
    if kind is tuple:
        need(isinstance(value, (list, tuple)), f"{where}: must be a list, not {value!r}")
        return tuple(_read(inside[0], one, f"{where}[{i}]") for i, one in enumerate(cast(list[Any], value)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = hint if isinstance(hint, type) else str  # a Literal of strings
    need(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool)),
        f"{where}: must be {kind.__name__}, not {value!r}",
    )
    return value


def load(kind: type[Spec], path: str | Path) -> Spec:
    """The spec of class ``kind`` in a JSON file. Raises ValueError naming the file and the field."""
    try:
        return parse(kind, json.loads(Path(path).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
