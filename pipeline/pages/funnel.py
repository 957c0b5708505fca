"""The funnel report: what happened to every document between ingest and shards, as one self-contained HTML page.

Made from the ``stats.json`` and ``samples.jsonl`` that every data stage leaves, dedup's ``pairs.jsonl`` and the token
dataset's ``meta.json``. Nothing is fetched by the page; its bytes depend on those files alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.data.jsonl import read_jsonl
from pipeline.pages.funnel_parts import FUNNEL_STYLE, count, histogram, pair, sample, share, table, widths
from pipeline.pages.report_style import STYLE

_SHOWN = 8
"""Samples shown of each rule; samples.jsonl has up to 20."""
_PAIRS = 4
ABOUT = {
    "ingest": "reads every source and gives each document its id, file and line",
    "clean": "takes the main text out of HTML, repairs, masks personal data, applies the quality rules",
    "language": "names each document's language and keeps the wanted ones",
    "dedup": "drops exact copies and verified near-copies, keeping the best one",
    "decontaminate": "looks for evaluation texts in the training documents",
    "shard": "splits, mixes and orders what is left",
}


def write_funnel(
    stages: Mapping[str, Path], out: Path, *, tokens: Path | None = None, records: Mapping[str, Path] = MappingProxyType({}),
    title: str = "What became of the documents",
) -> Path:  # fmt: skip
    """Write ``out/funnel.html`` and return its path.

    ``stages``: document artifacts by stage name in the order of the DAG, any of them; ``tokens``: the encoded dataset;
    ``records``: artifacts of the stages chats and preferences. ValueError when no stage has stats.
    """
    stats = _stats(stages)
    if not stats:
        raise ValueError("no data stage with a stats.json was given; there is nothing to report")
    samples = {name: list(read_jsonl(stages[name] / "samples.jsonl")) for name in stats}
    pairs = [
        pair
        for name in stats
        if (stages[name] / "pairs.jsonl").is_file()
        for pair in read_jsonl(stages[name] / "pairs.jsonl")
    ]
    meta = (
        json.loads((tokens / "meta.json").read_text(encoding="utf-8"))
        if tokens and (tokens / "meta.json").is_file()
        else None
    )
    sections = [
        _tiles(stats, meta), _overview(stats, meta), _rules(stats, samples), _by(stats, "by_source", "Sources"), _by(stats, "by_lang", "Languages"),
        _duplicates(stats, pairs), _personal(stats, samples), _contamination(stats | _stats(records)), _split(stats, meta), _records(records),
    ]  # fmt: skip
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        f' initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{FUNNEL_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<p class="lead">Every document that came in is in the last stage or in one of the rows below, with the'
        f" reason.</p>"
        f"{''.join(sections)}</main></body></html>\n"
    )
    path = out / "funnel.html"
    path.write_text(page, encoding="utf-8")
    return path


def _stats(stages: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    return {
        name: json.loads((path / "stats.json").read_text(encoding="utf-8"))
        for name, path in stages.items()
        if (path / "stats.json").is_file()
    }


def _section(title: str, body: str, lead: str = "") -> str:
    if not body:
        return ""
    about = f'<p class="about">{lead}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{about}{body}</section>"


def _kept(stats: dict[str, Any]) -> dict[str, Any]:
    """The last stage that only drops: sharding repeats documents by weight, which is no survival."""
    names = [name for name in stats if name != "shard"]
    return stats[names[-1]] if names else next(iter(stats.values()))


def _tiles(stats: dict[str, Any], meta: dict[str, Any] | None) -> str:
    first, last = next(iter(stats.values())), _kept(stats)
    tiles = [
        (
            f"{count(first['docs_in'])} → {count(last['docs_out'])}",
            f"documents; {share(last['docs_out'], first['docs_in'])} are kept",
        ),
        (
            f"{count(first['chars_in'])} → {count(last['chars_out'])}",
            f"characters; {share(last['chars_out'], first['chars_in'])} are kept",
        ),
    ]
    if meta:
        splits = meta["splits"]
        total = sum(split["tokens"] for split in splits.values())
        size = sum(split["bytes"] for split in splits.values())
        tiles.append(
            (count(total), f"tokens; {size / max(total, 1):.2f} bytes a token, vocabulary {meta['vocab_size']:,}")
        )
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{big}</b><span>{small}</span></div>' for big, small in tiles)
        + "</div>"
    )


def _overview(stats: dict[str, Any], meta: dict[str, Any] | None) -> str:
    """A bar of what is left per stage, and the numbers."""
    top = max(s["docs_in"] for s in stats.values()) or 1
    rows = []
    for name, s in stats.items():
        lost = sum(s["dropped"].values())
        bar = widths([(s["docs_out"], "kept"), (lost, "lost")], max(top, s["docs_out"]))
        what = f"<b>{escape(name)}</b><small>{escape(ABOUT.get(name, ''))}</small>"
        rows.append(
            [
                what,
                bar,
                count(s["docs_in"]),
                count(s["docs_out"]),
                share(lost, s["docs_in"]) if lost else "–",
                count(s["chars_out"]),
            ]
        )
    if meta:
        total = sum(split["tokens"] for split in meta["splits"].values())
        rows.append(["<b>encode</b><small>documents become token ids</small>", "", "", count(sum(s["sequences"] for s in meta["splits"].values())), "–",
                     f"{count(total)} tokens"])  # fmt: skip
    head = ["stage", "left of the documents", "documents in", "out", "dropped", "characters out"]
    legend = '<p class="legend"><span><i class="kept"></i>kept</span><span><i class="lost"></i>dropped here</span></p>'
    return _section("Stage by stage", legend + table(head, rows, numbers=(2, 3, 4, 5)))


def _rules(stats: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> str:
    lead = "Open a rule to see what it did, with file and line. Shares are of the documents that came into the stage."
    return _section("Rule by rule", _rule_list(stats, samples), lead)


def _rule_list(stats: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> str:
    """Each rule with its count and, folded, samples of what it did."""
    parts = []
    for name, s in stats.items():
        actions = {found["rule"]: found["action"] for found in samples[name]}
        counts = [("dropped", rule, n) for rule, n in s["dropped"].items()] + [
            (actions.get(rule, "changed"), rule, n) for rule, n in s["changed"].items()
        ]
        if not counts:
            continue
        top = max(n for *_, n in counts)
        items = []
        for action, rule, n in sorted(counts, key=lambda c: (c[0] != "dropped", -c[2], c[1])):
            shown = "".join(sample(found) for found in [f for f in samples[name] if f["rule"] == rule][:_SHOWN])
            head = (
                f'<span class="rule">{escape(rule.replace("_", " "))}</span><span class="badge'
                f' {escape(action)}">{escape(action)}</span>'
                f"{widths([(n, 'lost' if action == 'dropped' else 'other')], top)}"
                f'<span class="n">{n:,}</span><span class="n soft">{share(n, s["docs_in"])}</span>'
            )
            items.append(
                f"<details><summary>{head}</summary>{shown}</details>" if shown else f'<div class="flat">{head}</div>'
            )
        parts.append(f"<h3>{escape(name)}</h3>{''.join(items)}")
    return "".join(parts)


def _by(stats: dict[str, Any], key: str, title: str) -> str:
    """Documents out of every stage, by source or language."""
    members = sorted({name for s in stats.values() for name in s.get(key, {})})
    stages = [name for name, s in stats.items() if s.get(key)]
    if not members or not stages:
        return ""
    first = stages[0]
    known = [m for m in members if not (key == "by_lang" and m == "unknown")]
    if not known:
        return ""
    if key == "by_lang":  # before the language stage all are unknown
        stages = [
            name
            for name in stages
            if any(
                stats[name][key].get(m, {}).get("docs_out", 0) + stats[name][key].get(m, {}).get("docs_in", 0)
                for m in known
            )
        ]
        first = stages[0]
    rows = []
    for member in sorted(known, key=lambda m: (-stats[first][key].get(m, {}).get("docs_in", 0), m)):
        cells = [stats[stage][key].get(member, {}) for stage in stages]
        rows.append([escape(member), count(cells[0].get("docs_in", 0)), *(count(c.get("docs_out", 0)) for c in cells),
                     share(cells[-1].get("docs_out", 0), cells[0].get("docs_in", 0))])  # fmt: skip
    head = [title[:-1].lower(), f"into {first}", *(f"after {stage}" for stage in stages), "left"]
    decided = next((s["decided_by"] for s in stats.values() if s.get("decided_by")), None) if key == "by_lang" else None
    lead = (
        "Decided by "
        + ", ".join(f"{escape(engine)} {n:,}" for engine, n in sorted(decided.items(), key=lambda d: -d[1]))
        + "."
        if decided
        else ""
    )
    return _section(title, table(head, rows, numbers=tuple(range(1, len(head)))), lead)


def _duplicates(stats: dict[str, Any], pairs: list[dict[str, Any]]) -> str:
    """The histogram of near-duplicate similarity, and real pairs side by side."""
    body = ""
    for s in stats.values():
        found = s.get("similarity_histogram")
        if found:
            body += histogram(found["edges"], found["pairs"], found["threshold"])
            body += (
                f'<p class="about">{s.get("candidate_pairs", 0):,} candidate pairs were compared by their true Jaccard'
                " similarity; "
                f"{s.get('verified_pairs', 0):,} reach the threshold of {found['threshold']:g}, in"
                f" {s.get('clusters', 0):,} groups.</p>"
            )
    for copies, title in ((True, "Taken as copies"), (False, "Compared and kept apart")):
        mine = sorted(
            (p for p in pairs if p["copies"] is copies), key=lambda p: (p["similarity"], p["a"]), reverse=not copies
        )
        step = max(1, len(mine) // _PAIRS)
        body += f"<h3>{title}</h3>" + "".join(pair(p) for p in mine[::step][:_PAIRS]) if mine else ""
    return _section("Near-duplicates", body)


def _personal(stats: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> str:
    """What was masked."""
    masked = {(name, found["rule"]) for name, all_ in samples.items() for found in all_ if found["action"] == "masked"}
    rows = [[escape(rule.replace("_", " ")), count(stats[name]["changed"][rule]), share(stats[name]["changed"][rule], stats[name]["docs_in"])]
            for name, rule in sorted(masked) if rule in stats[name]["changed"]]  # fmt: skip
    return _section("Personal data", table(["masked", "documents", "of all"], rows, numbers=(1, 2)) if rows else "")


def _contamination(stats: dict[str, Any]) -> str:
    """Evaluation items by set and kind of training data: how many are clean, overlap, or are trained on knowingly."""
    found = {stage: s["evaluation"] for stage, s in stats.items() if s.get("evaluation")}
    columns = sorted({result for counts in found.values() for row in counts.values() for result in row})
    rows = [[escape(name), escape("documents" if stage == "decontaminate" else stage), *(count(row.get(c, 0)) for c in columns)]
            for stage, counts in found.items() for name, row in sorted(counts.items())]  # fmt: skip
    head = ["evaluation set", "looked for in", *(c.replace("_", " ") for c in columns)]
    lead = "Evaluation items whose text was found in what the models learn from."
    return _section("Contamination", table(head, rows, numbers=tuple(range(2, len(head)))) if rows else "", lead)


def _records(records: Mapping[str, Path]) -> str:
    """Chats and preference pairs: how many came in, stayed, and why the others went."""
    stats = _stats(records)
    samples = {name: list(read_jsonl(records[name] / "samples.jsonl")) for name in stats}
    rows = [[f"<b>{escape(name)}</b>", count(s["docs_in"]), count(s["docs_out"]), share(s["docs_in"] - s["docs_out"], s["docs_in"])]
            for name, s in stats.items()]  # fmt: skip
    body = table(["", "records in", "out", "dropped"], rows, numbers=(1, 2, 3)) if rows else ""
    return _section("Chats and preferences", body + _rule_list(stats, samples))


def _split(stats: dict[str, Any], meta: dict[str, Any] | None) -> str:
    """Documents, characters and tokens of training and validation."""
    splits = next((s["splits"] for s in stats.values() if s.get("splits")), None)
    if not splits:
        return ""
    rows = []
    for name, s in splits.items():
        tokens = meta["splits"].get(name, {}).get("tokens", 0) if meta else None
        kinds = ", ".join(f"{escape(key[5:])} {n:,}" for key, n in s.items() if key.startswith("kind/"))
        rows.append(
            [escape(name), count(s["docs"]), count(s["chars"]), count(tokens) if tokens is not None else "–", kinds]
        )
    return _section(
        "Training and validation",
        table(["split", "documents", "characters", "tokens", "kinds"], rows, numbers=(1, 2, 3)),
    )
