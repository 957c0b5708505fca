"""The funnel report: what happened to every document between ingest and shards, as one self-contained HTML page.

Made from the files that every data stage leaves (``stats.py``). Nothing is fetched by the page; its bytes depend on
those files alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pipeline.pages.funnel.stats import Meta, Pair, Sample, Stats, read_meta, read_pairs, read_samples, read_stats
from pipeline.pages.parts.charts import Chart, histogram
from pipeline.pages.parts.forms import Badge, Cell, Part, Piece, Table, Tile, bar, count, marked, share
from pipeline.pages.parts.render import html

HERE = Path(__file__).parent
KEPT, CHANGED, LOST = 1, 2, 5
"""Colours of what stays, what is changed and what goes."""
SHOWN, PAIRS = 8, 4
"""Samples shown of each rule (samples.jsonl has up to 20), and pairs of each kind."""
BADGES = {"dropped": "bad", "changed": "good", "masked": "warn", "reported": "warn"}


@dataclass(frozen=True)
class Case:
    """A sample as it is shown: why, where, and the text before (and after, where it was changed)."""

    why: str
    place: str
    left: Sequence[Piece]
    right: Sequence[Piece]


@dataclass(frozen=True)
class Rule:
    """A rule of a stage: what it did, to how many documents, and samples."""

    name: str
    badge: Badge
    bar: tuple[Part, ...]
    count: str
    share: str
    cases: Sequence[Case]


@dataclass(frozen=True)
class StageRules:
    """The rules of one stage that did something, and how many documents came in."""

    stage: str
    docs_in: str
    rules: Sequence[Rule]


@dataclass(frozen=True)
class Compared:
    """Pairs of near-duplicates of one kind, side by side."""

    title: str
    cases: Sequence[Case]


def write_funnel(
    stages: Mapping[str, Path],
    out: Path,
    *,
    tokens: Path | None = None,
    records: Mapping[str, Path] = MappingProxyType({}),
    about: Mapping[str, str] = MappingProxyType({}),
    title: str = "What became of the documents",
) -> Path:
    """Write ``out/funnel.html`` and return its path.

    ``stages``: document artifacts by stage name in the order of the DAG, any of them; ``tokens``: the encoded dataset;
    ``records``: artifacts of the stages that read records; ``about``: a line on what each stage
    does. ValueError when no stage has stats.
    """
    stats, meta, kinds = read_stats(stages), read_meta(tokens), read_stats(records)
    if not stats:
        raise ValueError("no data stage with a stats.json was given; there is nothing to report")
    samples = read_samples({name: stages[name] for name in stats})
    page = html(
        HERE,
        "funnel.html.j2",
        title=title,
        tiles=_tiles(stats, meta),
        overview=_overview(stats, meta, about),
        rules=_rules(stats, samples),
        sources=_by(stats, "by_source"),
        languages=_by(stats, "by_lang"),
        decided=_decided(stats),
        similarities=_similarities(stats),
        pairs=_compared(read_pairs({name: stages[name] for name in stats})),
        personal=_personal(stats, samples),
        contamination=_contamination(stats | kinds),
        splits=_splits(stats, meta),
        records=_records(kinds),
        record_rules=_rules(kinds, read_samples({name: records[name] for name in kinds})),
    )
    path = out / "funnel.html"
    path.write_text(page, encoding="utf-8")
    return path


def _kept(stats: Mapping[str, Stats]) -> Stats:
    """The last stage that only drops: sharding repeats documents by weight, which is no survival."""
    names = [name for name in stats if name != "shard"]
    return stats[names[-1]] if names else next(iter(stats.values()))


def _tiles(stats: Mapping[str, Stats], meta: Meta | None) -> list[Tile]:
    first, last = next(iter(stats.values())), _kept(stats)
    tiles = [
        Tile(
            f"{count(first['docs_in'])} → {count(last['docs_out'])}",
            f"documents; {share(last['docs_out'], first['docs_in'])} are kept",
        ),
        Tile(
            f"{count(first['chars_in'])} → {count(last['chars_out'])}",
            f"characters; {share(last['chars_out'], first['chars_in'])} are kept",
        ),
    ]
    if meta:
        total = sum(split["tokens"] for split in meta["splits"].values())
        size = sum(split["bytes"] for split in meta["splits"].values())
        note = f"tokens; {size / max(total, 1):.2f} bytes a token, vocabulary {meta['vocab_size']:,}"
        tiles.append(Tile(count(total), note))
    return tiles


def _overview(stats: Mapping[str, Stats], meta: Meta | None, about: Mapping[str, str]) -> Table:
    """A bar of what is left per stage, and the numbers."""
    top = max(s["docs_in"] for s in stats.values()) or 1
    rows: list[Sequence[str | Cell]] = []
    for name, s in stats.items():
        lost = sum(s["dropped"].values())
        rows.append(
            [
                Cell(name, strong=True, note=about.get(name, "")),
                Cell(bar=bar([(s["docs_out"], KEPT), (lost, LOST)], max(top, s["docs_out"]))),
                count(s["docs_in"]),
                count(s["docs_out"]),
                Cell(count(lost), note=share(lost, s["docs_in"])) if lost else "–",
                count(s["chars_out"]),
            ]
        )
    if meta:
        total = sum(split["tokens"] for split in meta["splits"].values())
        sequences = sum(split["sequences"] for split in meta["splits"].values())
        rows.append(
            [
                Cell("encode", strong=True, note=about.get("encode", "")),
                "",
                "",
                count(sequences),
                "–",
                f"{count(total)} tokens",
            ]
        )
    head = ["stage", "what is left of the documents", "documents in", "out", "dropped", "characters out"]
    return Table(head, rows, frozenset((2, 3, 4, 5)))


def _rules(stats: Mapping[str, Stats], samples: Mapping[str, Sequence[Sample]]) -> list[StageRules]:
    """Each rule with its count and samples of what it did: those that drop first, then by how much they did."""
    found = []
    for name, s in stats.items():
        actions = {sample["rule"]: sample["action"] for sample in samples[name]}
        counts = [("dropped", rule, n) for rule, n in s["dropped"].items()]
        counts += [(actions.get(rule, "changed"), rule, n) for rule, n in s["changed"].items()]
        top = max((n for *_, n in counts), default=0)
        rules = [
            Rule(
                _words(rule),
                Badge(action, BADGES.get(action, "")),
                bar([(n, LOST if action == "dropped" else CHANGED)], top),
                f"{n:,}",
                share(n, s["docs_in"]),
                [_case(sample) for sample in samples[name] if sample["rule"] == rule][:SHOWN],
            )
            for action, rule, n in sorted(counts, key=lambda c: (c[0] != "dropped", -c[2], c[1]))
        ]
        found += [StageRules(name, count(s["docs_in"]), rules)] if rules else []
    return found


def _case(sample: Sample) -> Case:
    place = sample["path"] if sample["path"] == sample["source"] else f"{sample['source']} · {sample['path']}"
    left, right = [Piece(sample["before"])] if sample["before"].strip() else [], []
    if sample["after"]:
        left, right = marked(sample["before"], sample["after"])
    return Case(sample["why"], f"{place}, line {sample['line']:,}", left, right)


def _by(stats: Mapping[str, Stats], key: Literal["by_source", "by_lang"]) -> Table | None:
    """Documents out of every stage, by source or language; None when no stage knows any."""
    counts = {name: s.get(key, {}) for name, s in stats.items() if s.get(key)}
    members = sorted({member for of in counts.values() for member in of})
    if key == "by_lang":  # before the language stage all are unknown
        members = [member for member in members if member != "unknown"]
        counts = {stage: of for stage, of in counts.items() if any(sum(of.get(m, {}).values()) for m in members)}
    if not members or not counts:
        return None
    first = next(iter(counts))

    def entered(member: str) -> int:
        return counts[first].get(member, {}).get("docs_in", 0)

    rows = []
    for member in sorted(members, key=lambda m: (-entered(m), m)):
        out = [of.get(member, {}).get("docs_out", 0) for of in counts.values()]
        rows.append([member, count(entered(member)), *map(count, out), share(out[-1], entered(member))])
    what = "source" if key == "by_source" else "language"
    head = [what, f"into {first}", *(f"after {stage}" for stage in counts), "left"]
    return Table(head, rows, frozenset(range(1, len(head))))


def _decided(stats: Mapping[str, Stats]) -> str:
    """How many languages were decided by what."""
    decided = next((by for s in stats.values() if (by := s.get("decided_by"))), {})
    ways = ", ".join(f"{way} {n:,}" for way, n in sorted(decided.items(), key=lambda d: (-d[1], d[0])))
    return f"Decided by {ways}." if ways else ""


def _similarities(stats: Mapping[str, Stats]) -> list[tuple[Chart, str]]:
    """The histogram of near-duplicate similarity, and what it says in words."""
    found = []
    for s in stats.values():
        if "similarity_histogram" in s:
            bins = s["similarity_histogram"]
            chart = histogram(
                bins["edges"], bins["pairs"], bins["threshold"], "Jaccard similarity of candidate pairs", "pairs"
            )
            text = (
                f"{s.get('candidate_pairs', 0):,} candidate pairs were compared by their true Jaccard similarity;"
                f" {s.get('verified_pairs', 0):,} reach the threshold of {bins['threshold']:g}, in"
                f" {s.get('clusters', 0):,} groups."
            )
            found.append((chart, text))
    return found


def _compared(pairs: Sequence[Pair]) -> list[Compared]:
    """Real pairs from all over the range: the least alike copies and the most alike others among them."""
    found = []
    for copies, title in ((True, "Taken as copies"), (False, "Compared and kept apart")):
        own = [pair for pair in pairs if pair["copies"] is copies]
        own.sort(key=lambda p: (p["similarity"], p["a"]), reverse=not copies)
        cases = [
            Case(f"{p['similarity']:.2f}", f"{p['a']} · {p['b']}", *marked(p["text_a"], p["text_b"]))
            for p in own[:: max(1, len(own) // PAIRS)][:PAIRS]
        ]
        found += [Compared(title, cases)] if cases else []
    return found


def _personal(stats: Mapping[str, Stats], samples: Mapping[str, Sequence[Sample]]) -> Table | None:
    """What was masked."""
    masked = {(name, sample["rule"]) for name, own in samples.items() for sample in own if sample["action"] == "masked"}
    rows = []
    for name, rule in sorted(masked):
        changed, whole = stats[name]["changed"].get(rule, 0), stats[name]["docs_in"]
        rows += [[_words(rule), count(changed), count(whole), share(changed, whole)]] if changed else []
    return Table(["masked", "documents", "of", "share"], rows, frozenset((1, 2, 3))) if rows else None


def _contamination(stats: Mapping[str, Stats]) -> Table | None:
    """Evaluation items by set and kind of training data: how many are clean, overlap, or are trained on knowingly."""
    found = {stage: by_set for stage, s in stats.items() if (by_set := s.get("evaluation"))}
    columns = sorted({result for counts in found.values() for row in counts.values() for result in row})
    rows = [
        [name, "documents" if stage == "decontaminate" else stage, *(count(row.get(c, 0)) for c in columns)]
        for stage, counts in found.items()
        for name, row in sorted(counts.items())
    ]
    head = ["evaluation set", "looked for in", *map(_words, columns)]
    return Table(head, rows, frozenset(range(2, len(head)))) if rows else None


def _records(stats: Mapping[str, Stats]) -> Table | None:
    """Chats and preference pairs: how many came in and stayed."""
    rows = []
    for name, s in stats.items():
        lost = s["docs_in"] - s["docs_out"]
        dropped = Cell(count(lost), note=share(lost, s["docs_in"])) if lost else "–"
        rows.append([Cell(name, strong=True), count(s["docs_in"]), count(s["docs_out"]), dropped])
    return Table(["", "records in", "out", "dropped"], rows, frozenset((1, 2, 3))) if rows else None


def _splits(stats: Mapping[str, Stats], meta: Meta | None) -> Table | None:
    """Documents, characters and tokens of training and validation."""
    splits = next((by_split for s in stats.values() if (by_split := s.get("splits"))), None)
    if not splits:
        return None
    rows = []
    for name, s in splits.items():
        tokens = count(meta["splits"].get(name, {}).get("tokens", 0)) if meta else "–"
        kinds = ", ".join(f"{key[5:]} {n:,}" for key, n in s.items() if key.startswith("kind/"))
        rows.append([name, count(s["docs"]), count(s["chars"]), tokens, kinds])
    return Table(["split", "documents", "characters", "tokens", "kinds"], rows, frozenset((1, 2, 3)))


def _words(name: str) -> str:
    return name.replace("_", " ")
