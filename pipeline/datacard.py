"""The data card of the final shards: ``datacard.json`` for programs and ``README.md`` for readers.

The README's head is a Hugging Face dataset card, so that ``datasets.load_dataset(directory)`` finds the splits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.sections.data import ShardSection

LICENCES = {"python-docs": "PSF-2.0 for the standard library, each package's own licence for the rest", "teaching": "that of this project"}
"""Licences of the built-in sources; others are what shard.licences says, or unknown."""


def write_datacard(out: Path, cfg: ShardSection, stats: dict[str, Any], history: Mapping[str, Path]) -> None:
    """Write both files. ``history``: the earlier stages' artifacts by name, in order; their ``stats.json`` tell the rules applied."""
    card = _card(cfg, stats, history)
    (out / "datacard.json").write_text(json.dumps(card, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_readme(card), encoding="utf-8")


def _card(cfg: ShardSection, stats: dict[str, Any], history: Mapping[str, Path]) -> dict[str, Any]:
    licences = {**LICENCES, **cfg.licences}
    stages = []
    for name, path in history.items():
        said = json.loads((path / "stats.json").read_text(encoding="utf-8"))
        stages.append({"stage": name, **{key: said.get(key) for key in ("docs_in", "docs_out", "chars_in", "chars_out", "dropped", "changed")}})
    return {
        "splits": stats["splits"],
        "languages": sorted({key[5:] for split in stats["splits"].values() for key in split if key.startswith("lang/")}),
        "sources": {
            name: {"docs_in": counts["docs_in"], "docs_out": counts["docs_out"], "weight": cfg.weights.get(name, 1), "licence": licences.get(name, "unknown")}
            for name, counts in stats["by_source"].items()
        },
        "split": {"val_share": cfg.val_share, "seed": cfg.seed, "by": "hash of the document's id"},
        "stages": stages,
    }


def _readme(card: dict[str, Any]) -> str:
    """The card in Markdown."""
    languages = [lang for lang in card["languages"] if lang != "unknown"]
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, name in (("train", "train"), ("val", "validation")):
        if card["splits"][split]["docs"]:
            lines += [f"  - split: {name}", f"    path: {split}/part-*.parquet"]
    lines += ["language:", *(f"- {lang}" for lang in languages)] if languages else []
    lines += ["---", "", "# Training documents", ""]
    lines += _table(("split", "documents", "characters"), [(s, c["docs"], c["chars"]) for s, c in card["splits"].items()])
    lines += ["", "Columns: `id`, `text`, `lang`, `source`, `path`, `line`, `origin_id` (the input's own id), `kind` (`text`, or `chat` in ChatML).", ""]
    lines += [f"Held out: a share of {card['split']['val_share']}, by {card['split']['by']} (seed {card['split']['seed']}).", "", "## Sources", ""]
    lines += _table(("source", "documents in", "documents out", "weight", "licence"),
                    [(name, s["docs_in"], s["docs_out"], s["weight"], s["licence"]) for name, s in card["sources"].items()])  # fmt: skip
    for part, title in (("lang", "Languages"), ("kind", "Kinds")):
        counts: dict[str, int] = {}
        for split in card["splits"].values():
            for key, n in split.items():
                if key.startswith(part + "/"):
                    counts[key[5:]] = counts.get(key[5:], 0) + n
        lines += ["", f"## {title}", "", *_table((title[:-1].lower(), "documents"), sorted(counts.items(), key=lambda c: (-c[1], c[0])))]
    if card["stages"]:
        lines += ["", "## How they were made", ""]
        rows = [(s["stage"], s["docs_in"], s["docs_out"], _rules(s["dropped"]), _rules(s["changed"])) for s in card["stages"]]
        lines += _table(("stage", "documents in", "documents out", "dropped by rule", "changed by rule"), rows)
    return "\n".join(lines) + "\n"


def _rules(counts: dict[str, int] | None) -> str:
    return ", ".join(f"{rule} {n:,}" for rule, n in sorted((counts or {}).items(), key=lambda c: (-c[1], c[0]))) or "-"


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    """A Markdown table; numbers with thousands separators."""
    cells = [[f"{v:,}" if isinstance(v, int) else str(v).replace("|", "\\|") for v in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (list(head), ["---"] * len(head), *cells)]
