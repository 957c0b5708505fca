"""A config as TOML that ``pipeline run`` takes back."""

from __future__ import annotations

import json

from pipeline.config.resources import Resources
from pipeline.config.tree import Config, read


def written(config: Config, preset: str, overrides: list[str] | tuple[str, ...] = ()) -> str:
    """Every option with its value, section by section. What this machine decides (``resources.workers``, when it is the
    number of its cores) is left out, and so is what ``pretrain.depth`` derives."""
    lines = [f"about = {_value(' '.join(['as', preset, *overrides]))}"]
    values = config.model_dump(mode="json")
    if config.resources.workers == Resources().workers:
        del values["resources"]["workers"]
    if config.pretrain.depth:
        given = read(preset).get("pretrain", {})
        told = {text.partition("=")[0].strip() for text in overrides}
        for name in ("model", "optim"):
            own = given.get(name, {})
            values["pretrain"][name] = {
                key: value
                for key, value in values["pretrain"][name].items()
                if key in own or f"pretrain.{name}.{key}" in told
            }
        for name in ("batch_tokens", "steps"):
            del values["pretrain"][name]
    for section, options in values.items():
        lines += ["", f"[{section}]"]
        lines += [f"{name} = {_value(value)}" for name, value in options.items() if value is not None]
    return "\n".join(lines)


def _value(value: object) -> str:
    """One TOML value on one line. Strings are JSON's, whose escapes TOML shares."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return "{ " + inside + " }" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    bare = name.replace("_", "").replace("-", "")
    return name if bare.isascii() and bare.isalnum() else json.dumps(name, ensure_ascii=False)
