"""The data card of the final shards: ``datacard.json`` for programs and ``README.md`` for readers.

The README's head is a Hugging Face dataset card, so that ``datasets.load_dataset(directory)`` finds the splits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.data import ShardSection

LICENCES = {
    "python-docs": "PSF-2.0 for the standard library, each package's own licence for the rest",
    "teaching": "that of this project",
}
"""Licences of the built-in sources; others are what shard.licences says, or unknown."""
MASKS = frozenset({"email", "id_card", "phone", "ip_address"})
"""The rules of the clean stage that mask personal data."""


def write_datacard(out: Path, cfg: ShardSection, stats: dict[str, Any], history: Mapping[str, Path]) -> None:
    """Write both files. ``history``: the earlier stages' artifacts by name, in order; their ``stats.json`` tell the
    rules applied."""
    card = _card(cfg, stats, history)
    (out / "datacard.json").write_text(
        json.dumps(card, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    (out / "README.md").write_text(_readme(card), encoding="utf-8")


def _card(cfg: ShardSection, stats: dict[str, Any], history: Mapping[str, Path]) -> dict[str, Any]:
    licences = {**LICENCES, **cfg.licences}
    stages = []
    for name, path in history.items():
        said = json.loads((path / "stats.json").read_text(encoding="utf-8"))
        stages.append(
            {
                "stage": name,
                **{
                    key: said.get(key) for key in ("docs_in", "docs_out", "chars_in", "chars_out", "dropped", "changed")
                },
            }
        )
        stages[-1] |= {"evaluation": said["evaluation"]["all"]} if "evaluation" in said else {}
    return {
        "splits": stats["splits"],
        "languages": sorted(
            {key[5:] for split in stats["splits"].values() for key in split if key.startswith("lang/")}
        ),
        "sources": {
            name: {
                "docs_in": counts["docs_in"],
                "docs_out": counts["docs_out"],
                "weight": cfg.weights.get(name, 1),
                "licence": licences.get(name, "unknown"),
            }
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
    lines += [
        "task_categories:",
        "- text-generation",
        "size_categories:",
        f"- {_size(sum(split['docs'] for split in card['splits'].values()))}",
    ]
    lines += [
        "---",
        "",
        "# Training documents",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'documents = load_dataset(".")',
        "```",
        "",
    ]
    lines += _table(
        ("split", "documents", "characters"), [(s, c["docs"], c["chars"]) for s, c in card["splits"].items()]
    )
    lines += [
        "",
        (
            "Columns: `id`, `text`, `lang`, `source`, `path`, `line`, `origin_id` (the input's own id), `kind` (`text`,"
            " or `chat` in ChatML)."
        ),
        "",
    ]
    lines += [
        f"Held out: a share of {card['split']['val_share']}, by {card['split']['by']} (seed {card['split']['seed']}).",
        "",
        "## Sources",
        "",
    ]
    lines += _table(
        ("source", "documents in", "documents out", "weight", "licence"),
        [(name, s["docs_in"], s["docs_out"], s["weight"], s["licence"]) for name, s in card["sources"].items()],
    )
    for part, title in (("lang", "Languages"), ("kind", "Kinds")):
        counts: dict[str, int] = {}
        for split in card["splits"].values():
            for key, n in split.items():
                if key.startswith(part + "/"):
                    counts[key[5:]] = counts.get(key[5:], 0) + n
        lines += [
            "",
            f"## {title}",
            "",
            *_table((title[:-1].lower(), "documents"), sorted(counts.items(), key=lambda c: (-c[1], c[0]))),
        ]
    if card["stages"]:
        lines += ["", "## How they were made", ""]
        rows = [
            (s["stage"], s["docs_in"], s["docs_out"], _rules(s["dropped"]), _rules(s["changed"]))
            for s in card["stages"]
        ]
        lines += _table(("stage", "documents in", "documents out", "dropped by rule", "changed by rule"), rows)
    lines += ["", "## What to know before use", "", *_cautions(card)]
    return "\n".join(lines) + "\n"


def _cautions(card: dict[str, Any]) -> list[str]:
    """Licences, personal data and evaluation texts: what was done, as far as the stages tell, and what was not."""
    unknown = [name for name, source in card["sources"].items() if source["licence"] == "unknown"]
    stages = {stage["stage"]: stage for stage in card["stages"]}
    masked = {rule: n for rule, n in (stages.get("clean", {}).get("changed") or {}).items() if rule in MASKS}
    judged = stages.get("decontaminate", {}).get("evaluation")
    lines = [f"- Of unknown licence: {', '.join(unknown)}."] if unknown else []
    if "clean" in stages:
        lines.append(
            f"- Personal data is masked by patterns ({_rules(masked)} documents); names are not, nor what no pattern"
            " finds."
        )
    lines.append(
        f"- Searched for the texts of evaluation items, which came out: {_rules(judged)}."
        if judged
        else "- Not searched for evaluation texts."
    )
    return [
        *lines,
        (
            "- Languages are those of whole documents, told by a program; duplicates were looked for among these"
            " documents alone."
        ),
    ]


def _size(documents: int) -> str:
    """The Hugging Face category of a number of documents."""
    for power, (low, high) in enumerate(
        itertools.pairwise(("", "1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"))
    ):
        if documents < 10 ** (power + 3):
            return f"{low}<n<{high}" if low else f"n<{high}"
    return "n>1T"


def _rules(counts: dict[str, int] | None) -> str:
    return ", ".join(f"{rule} {n:,}" for rule, n in sorted((counts or {}).items(), key=lambda c: (-c[1], c[0]))) or "-"


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    """A Markdown table; numbers with thousands separators."""
    cells = [[f"{v:,}" if isinstance(v, int) else str(v).replace("|", "\\|") for v in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (list(head), ["---"] * len(head), *cells)]
