"""Looking at what the store holds: plans, artifacts, lineage, models, verification and garbage collection."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from flows.console import duration, headline
from flows.environment import say
from flows.price import Bill
from flows.runs import meant, model_stages
from pipeline.config.base import Section
from storage.digest import sha256_file
from storage.lineage import (
    FileUse,
    LineageRecord,
    Node,
    Records,
    ancestors,
    descendants,
    file_users,
    parse,
    read_listings,
    source_users,
)
from storage.places import home
from storage.store import Store, open_store


def store() -> Store:
    return open_store(home() / "store", log=lambda line: print(line, file=sys.stderr))


def print_plan(planned: list[Any], as_json: bool, notes: list[str], bill: Bill | None = None) -> int:
    """A line per stage: hit, miss or depends, why, and how long it should take; then what else a person should
    know."""
    if as_json:
        names = ("stage", "state", "reasons", "key", "digest", "seconds")
        told = [{name: getattr(plan, name) for name in names} for plan in planned]
        say(told if bill is None else {"stages": told, "bill": dataclasses.asdict(bill)})
        return 0
    for plan in planned:
        cost = f"~{duration(plan.seconds)}" if plan.seconds is not None else "?" if plan.state != "hit" else ""
        print(
            f"  {plan.stage:<14} {plan.state:<8} {cost:>14}   {'; '.join(plan.reasons[:4])}"
            + (" …" if len(plan.reasons) > 4 else "")
        )
    missing = [plan for plan in planned if plan.state != "hit"]
    told = [plan.seconds for plan in missing if plan.seconds is not None]
    unknown = len(missing) - len(told)
    print(
        f"\n{len(planned) - len(missing)} of {len(planned)} stages are cached in {home() / 'store'}."
        + (f" The rest should take {'at least ' if unknown else ''}{duration(sum(told))}." if told else "")
        + (f" Of {unknown} nothing comparable was built here yet." if unknown else "")
    )
    for line in bill.lines() if bill else ():
        print(line)
    for line in notes:
        print(f"note: {line}")
    return 0


def explain_config(config: Section) -> str:
    """Every option as ``path = value`` with its meaning, its type, and the values it may have."""
    from pydantic import TypeAdapter

    lines: list[str] = []

    def walk(node: object, prefix: str) -> None:
        adapter: TypeAdapter[Any] = TypeAdapter(node.__class__)
        schema = adapter.json_schema()
        for name, info in schema["properties"].items():
            value: object = getattr(node, name)
            if hasattr(type(value), "model_fields") or hasattr(value, "__dataclass_fields__"):
                walk(value, f"{prefix}{name}.")
            else:
                meaning = " ".join(info.get("description", "").replace("``", "").split()).rstrip(".")
                shown = json.dumps(value, default=str, ensure_ascii=False)
                kind = f"{kind_of(info, schema.get('$defs', {}))}{_range(node, name, value)}"
                lines.append(f"{prefix}{name} = {shown}   # {meaning}  [{kind}]")

    walk(config, "")
    return "\n".join(lines)


def _range(node: object, name: str, value: Any) -> str:
    """The range that a dataclass's own checks leave a number, found by asking them; a section's is in its schema."""
    if not dataclasses.is_dataclass(node) or isinstance(value, (bool, str)) or not isinstance(value, (int, float)):
        return ""
    allowed = tuple(_allows(node, name, type(value)(number)) for number in (-1, 0, 1, 2))
    least = " >= 1" if isinstance(value, int) else " > 0"
    known: dict[tuple[bool, ...], str] = {
        (False, False, True, True): least,
        (False, True, True, True): " >= 0",
        (False, True, True, False): " >= 0 and <= 1",
        (False, True, False, False): " >= 0 and < 1",
    }
    return known.get(allowed, "")


def _allows(node: Any, name: str, value: Any) -> bool:
    try:
        dataclasses.replace(node, **{name: value})
    except ValueError:
        return False
    return True


def kind_of(info: dict[str, Any], defs: dict[str, Any]) -> str:
    """A JSON schema in words: ``integer >= 1``, ``one of "on", "off"``, ``list of text``, ``table of text by name``."""
    info = defs.get(str(info.get("$ref", "")).rpartition("/")[2], info)
    if "enum" in info or "const" in info:
        return "one of " + ", ".join(json.dumps(v) for v in info.get("enum", [info.get("const")]))
    if "anyOf" in info:
        return " or ".join(kind_of(part, defs) for part in info["anyOf"])
    kind = str(info.get("type", "value"))
    if kind == "array":
        return f"list of {kind_of(info.get('items', {}), defs)}" + (", not empty" if info.get("minItems") else "")
    if kind == "object":
        return f"table of {kind_of(info.get('additionalProperties') or {}, defs)} by name"
    if kind == "boolean":
        return "true or false"
    signs = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {info[name]:g}" for name, sign in signs if name in info]
    return " ".join([{"string": "text"}.get(kind, kind), " and ".join(limits)]).strip()


def show(ref: str, as_json: bool) -> int:
    """Print one artifact's record and files; a preset's name or a run's id means its model."""
    try:
        record = find_record(ref)
    except LookupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = store().directory(record["stage"], record["key"])
    if as_json:
        say({**record, "path": str(path)})
        return 0
    print(
        f"{record['stage']}/{record['key']}\n  digest   {record['digest']}\n  path     {path}\n  made    "
        f" {record['created']} in {duration(record.get('seconds', 0.0))}, run {record.get('run')}\n  what    "
        f" {headline(record.get('metrics', {}), record['stage'])}"
    )
    if "adopted_from" in record:
        print(
            f"  adopted  from {record['stage']}/{record['adopted_from']['key'][:12]}, although"
            f" {'; '.join(record['adopted_from']['differences'])}"
        )
    if withdrawn := record.get("withdrawn"):
        print(f"  WITHDRAWN  {withdrawn}")
    for given in record["inputs"]:
        print(f"  from     {given['name']}: {given['stage']}/{given['key'][:12] or given['digest'][:12]}")
    for listing in read_listings(path):
        for file in listing["files"]:
            print(f"  {file['bytes']:>12,}  {listing['name']}: {file['path']}  sha256 {file['sha256'][:12]}")
    for rel, size in store().contents(record["stage"], record["key"]).items():
        print(f"  {size:>12,}  {rel}")
    return 0


def find_record(ref: str) -> LineageRecord:
    """The record that a preset's name, a run's id, a stage or a reference means. Raises LookupError in words."""
    run = meant(ref)
    model = run.model if run else None
    if run and not model:
        raise LookupError(f"{ref}  run {run.id} ({run.state}) made no model; `pipeline runs` lists those that did")
    found = store().find(f"{model['name']}/{model['key']}" if model else ref)
    if len(found) == 1:
        return found[0]
    if run and model:
        raise LookupError(
            f"{ref}  {model['name']}/{model['key'][:12]} of run {run.id} is no longer in {home() / 'store'};"
            f" `pipeline run {run.asked}` makes it again"
        )
    if found:
        names = ", ".join(f"{r['stage']}/{r['key'][:12]}" for r in found[:8])
        raise LookupError(f"{ref}  means {len(found)} artifacts: {names}; give more of the key")
    raise LookupError(
        f"{ref}  is no preset that has run, no run, no stage/key or digest in {home() / 'store'} and no model"
        f" directory; `pipeline run {ref}` makes one if it is a preset (PIPELINE_HOME says where to look)"
    )


def find_model(ref: str, force: bool = False) -> Path:
    """The directory of a model: a path, a preset's newest model, or a reference. Raises LookupError in words, for a
    withdrawn one too."""
    path = Path(ref)
    if (path / "config.json").is_file():
        record = _told(path / "lineage.json")
    else:
        record = find_record(ref)
        if record["stage"] not in model_stages() and record.get("kind") not in ("model", "release"):
            raise LookupError(f"{ref}  is a {record['stage']} artifact, not a model")
        look = store().examine(record["stage"], record["key"])
        if look.state == "damaged":
            raise LookupError(f"{ref}  {look.why}; `pipeline run` makes it anew")
        path = store().directory(record["stage"], record["key"])
    if record and not force and (why := store().withdrawals.because(record)):
        raise LookupError(f"{ref}  was withdrawn: {why}; --force talks to it all the same")
    return path


def _told(path: Path) -> LineageRecord | None:
    """The lineage record of a directory that lies anywhere; None when it has none."""
    try:
        told = json.loads(path.read_text("utf-8"))
        return parse(json.dumps(told), told["stage"], told["key"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def lineage(ref: str, down: bool, as_json: bool) -> int:
    """Print the tree of what an artifact was made from, or of what was made from it."""
    records = store().everywhere()
    uses: list[FileUse] = []
    try:
        start = [find_record(ref)]
    except LookupError as error:
        start = source_users(records, ref) if down else []
        if not start:
            uses = files_called(records, ref)
            start = list({(u["record"]["stage"], u["record"]["key"]): u["record"] for u in uses}.values())
        if not start:
            print(f"error: {error}", file=sys.stderr)
            return 2
    tree = descendants if down else ancestors
    if uses and not as_json:
        for line in sorted({_file_line(use) for use in uses}):
            print(line)
    if as_json:
        say([tree(records, r) for r in start])
        return 0
    for record in start:
        _print_tree(tree(records, record), "", True, True)
    return 0


def files_called(records: Records, what: str) -> list[FileUse]:
    """Which artifacts read the file that ``what`` names: by its content when it lies here, else by path, name or start
    of its sha256."""
    place, path = store(), Path(what).expanduser()
    found = file_users(records, lambda at: place.directory(*at), what, sha256_file(path) if path.is_file() else None)
    return found or file_users(records, lambda at: place.directory(*at), what)


def _file_line(use: FileUse) -> str:
    return f"{use['source']}: {use['file']['path']}  {use['file']['bytes']:,} bytes, sha256 {use['file']['sha256']}"


def _print_tree(node: Node, indent: str, last: bool, root: bool = False) -> None:
    mark = "" if root else ("└─ " if last else "├─ ")
    label = f"{node['stage']}/{node['key'][:12]}" if node["key"] else f"source {node['name']}"
    print(f"{indent}{mark}{label}  {node['what']}".rstrip())
    below = indent if root else indent + ("   " if last else "│  ")
    for i, child in enumerate(node["links"]):
        _print_tree(child, below, i == len(node["links"]) - 1)


def verify(ref: str | None) -> int:
    """Hash artifacts again; damaged ones are set aside so that the next run makes them anew."""
    place = store()
    records = place.find(ref) if ref and "/" in ref else list(place.records(ref))
    if ref and not records:
        print(f"error: {ref}  nothing in {place.root} has that name; give a stage or stage/key", file=sys.stderr)
        return 2
    damaged = 0
    for record in records:
        problems = place.verify(record["stage"], record["key"])
        print(f"  {record['stage']}/{record['key'][:12]}  {'; '.join(problems) or 'sound'}")
        if problems:
            damaged += 1
            with place.lease(record["stage"], record["key"]):
                place.set_aside(
                    record["stage"], record["key"], f"{record['stage']}/{record['key'][:12]} is damaged ({problems[0]})"
                )
    print(f"{len(records) - damaged} of {len(records)} artifacts in {place.root} are sound")
    return 1 if damaged else 0
