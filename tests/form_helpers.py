"""The form of an artifact: of each of its files that others read, what fields it has and of what type."""

import json
import re
import tomllib
from pathlib import Path

import pyarrow.parquet as pq

KNOWN = Path(__file__).parent / "forms.toml"
TYPES = {bool: "yes/no", int: "number", float: "number", str: "text", list: "list", dict: "fields"}
LINES = 200
"""Lines of a file of records that are looked at."""


def form(artifact: Path) -> dict[str, set[str]]:
    """By file name (numbers as N) its fields, each with its type. A field that is empty (null) says nothing."""
    found: dict[str, set[str]] = {}
    for path in sorted(p for p in artifact.rglob("*") if p.is_file()):
        name = path.relative_to(artifact).as_posix()
        if name.startswith("_run/") or name in ("lineage.json", "manifest.json", "prefect.json"):
            continue
        found.setdefault(re.sub(r"\d+", "N", name), set()).update(_fields(path))
    return found


def _fields(path: Path) -> set[str]:
    if path.suffix == ".parquet":
        return {f"{field.name}: {field.type}" for field in pq.read_schema(path)}
    if path.suffix not in (".json", ".jsonl") or path.name.startswith("tokenizer"):
        return set()
    text = path.read_text("utf-8")
    values = [json.loads(line) for line in text.splitlines()[:LINES]] if path.suffix == ".jsonl" else [json.loads(text)]
    found: set[str] = set()
    for value in values:
        _walk(value, found)
    return found


def _walk(value, found: set[str]) -> None:
    if isinstance(value, list):
        for item in value[:LINES]:
            _walk(item, found)
    if isinstance(value, dict):
        for name, own in value.items():
            if own is not None:
                found.add(f"{name}: {TYPES[type(own)]}")
            _walk(own, found)


def changed(stage: str, artifact: Path) -> list[str]:
    """What the artifact has that tests/forms.toml does not know of its stage, a line per file, as it is written
    there."""
    version = json.loads((artifact / "lineage.json").read_text("utf-8"))["identity"]["version"]
    known = tomllib.loads(KNOWN.read_text("utf-8")).get(stage, {})
    lines = [] if known.get("version") == version else [f"[{stage}] version = {version}"]
    for name, fields in form(artifact).items():
        if name not in known or not fields <= set(known[name]):
            lines.append(
                f'[{stage}] "{name}" = {json.dumps(sorted({*known.get(name, ()), *fields}), ensure_ascii=False)}'
            )
    return lines
