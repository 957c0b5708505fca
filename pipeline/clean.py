"""The clean stage: repair what can be repaired, drop what is not a text, mask personal data, and say why each time.

Chat documents were rendered through the chat template and get the Unicode repairs only. The work goes batch by batch:
one compiled pass tells which documents need which repair, so the Python code below touches only those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import repairs, rules
from pipeline.documents import SCHEMA, Tally, finish, flat, plan, read_job, write_part
from pipeline.executor import run_shards
from pipeline.kernels import alphabet, scan
from pipeline.kernels.alphabet import CONTROL
from pipeline.kernels.scan import Stat
from pipeline.sections.base import Progress, quiet
from pipeline.sections.cleaning import CleanSection

BATCH_ROWS = 1024
BATCH_CHARACTERS = 8_000_000


def clean(
    cfg: CleanSection, docs: Path, out: Path, *, workers: int = 1, engine: str = "local", progress: Progress = quiet
) -> dict[str, float]:
    """Clean a document artifact into `out`; returns the flat metrics of ``stats.json``.

    Args:
        docs: artifact of Parquet parts (see pipeline.documents).
        workers, engine: how to run; they change no byte of the output.
    Raises:
        ValueError: `docs` holds no parts. ShardFailed: a shard could not be done.
    """
    out.mkdir(parents=True, exist_ok=True)
    jobs = [{**job, "out": str(out), "cfg": cfg.model_dump(mode="json")} for job in plan(docs)]
    results = run_shards(clean_job, jobs, workers=workers, done=out / "_run" / "done", engine=engine, progress=progress)
    return flat(finish(out, results))


def clean_job(job: dict[str, Any]) -> dict[str, Any]:
    """Clean one shard and write its part; returns its tally."""
    cfg, table, tally = CleanSection(**job["cfg"]), read_job(job), Tally()
    tally.count("in", table)
    cleaned = pa.concat_tables([_clean_batch(batch, cfg, tally) for batch in batches(table)] or [table])
    tally.count("out", cleaned)
    write_part(Path(job["out"]), job["index"], cleaned)
    return tally.json()


def batches(table: pa.Table) -> Iterator[pa.Table]:
    """Slices of at most BATCH_ROWS rows and about BATCH_CHARACTERS characters, so that a batch of books fits into memory too."""
    import pyarrow.compute as pc

    sizes = np.cumsum(pc.binary_length(table["text"]).to_numpy())
    start = 0
    while start < table.num_rows:
        base = sizes[start - 1] if start else 0
        stop = int(np.searchsorted(sizes, base + BATCH_CHARACTERS, "right"))
        stop = min(max(stop, start + 1), start + BATCH_ROWS, table.num_rows)
        yield table.slice(start, stop - start)
        start = stop


class _Batch:
    """The texts of a batch with the bookkeeping of what happened to them."""

    def __init__(self, table: pa.Table, cfg: CleanSection, tally: Tally) -> None:
        self.cfg, self.tally, self.off = cfg, tally, frozenset(cfg.disabled_rules)
        self.texts: list[str] = table["text"].to_pylist()
        self.plain = np.array([kind != "chat" for kind in table["kind"].to_pylist()], bool)
        self.places = table.select(["id", "source", "path", "line"]).to_pylist()

    def change(self, rule: str, where: np.ndarray | list[int], repair: Callable[[str], str], why: str, action: str = "changed") -> list[int]:
        """Apply `repair` to the texts numbered in `where`; count and sample those that it changed, and return their numbers."""
        changed = []
        for i in where if rule not in self.off else ():
            before = self.texts[i]
            after = repair(before)
            if after != before:
                self.texts[i] = after
                changed.append(int(i))
                self.tally.note(action, rule, self.places[i], partial(_around, before, after), why)
        return changed


def _around(before: str, after: str) -> tuple[str, str]:
    """Both texts from a little before the first difference, so that the sample shows it."""
    limit = min(len(before), len(after))
    step = at = 0
    while at < limit:  # compare by growing blocks, then find the character
        step = min(256, limit - at)
        if before[at : at + step] != after[at : at + step]:
            break
        at += step
    while at < limit and before[at] == after[at]:
        at += 1
    start = max(0, at - 60)
    return before[start : start + 400], after[start : start + 400]


def _clean_batch(table: pa.Table, cfg: CleanSection, tally: Tally) -> pa.Table:
    batch = _Batch(table, cfg, tally)
    facts = rules.gather(batch.texts, _repair(batch, table["text"]))
    facts = _cut_boilerplate(batch, facts)
    keep = _judge(batch, facts)
    _mask(batch, facts, keep)
    text = pa.array([t for t, k in zip(batch.texts, keep, strict=True) if k], pa.string())
    return table.filter(pa.array(keep)).set_column(SCHEMA.get_field_index("text"), SCHEMA.field("text"), text)


def _repair(batch: _Batch, column: pa.ChunkedArray) -> np.ndarray:
    """HTML, wrong decoding, control characters, NFC, white space: in this order, each where the scan asks for it.

    Returns the statistics of the repaired texts, int64 [n, COLUMNS].
    """
    pages = [i for i, text in enumerate(batch.texts) if batch.plain[i] and repairs.is_html(text)]
    extracted = batch.change("html", pages, repairs.main_text, "an HTML page: its main text")
    stats = scan.scan(*alphabet.encode(column))
    stats[extracted] = scan.scan(*alphabet.encode([batch.texts[i] for i in extracted]))
    suspects = np.flatnonzero(stats[:, Stat.MOJIBAKE])
    mended = batch.change("mojibake", suspects, repairs.repair_mojibake, "UTF-8 or GBK had been read in another encoding")
    stats[mended] = scan.scan(*alphabet.encode([batch.texts[i] for i in mended]))
    controls = np.flatnonzero(stats[:, CONTROL])
    changed = batch.change("control_characters", controls, repairs.strip_controls, "control or zero-width characters")
    changed += batch.change("unicode_nfc", range(len(batch.texts)), repairs.nfc, "not in Unicode normal form C")
    untidy = np.flatnonzero(batch.plain & (stats[:, Stat.UNTIDY] + stats[:, CONTROL] > 0))
    batch.change("whitespace", untidy, repairs.tidy, "spaces at line ends, odd spaces or runs of blank lines")  # asked of no rule
    changed = sorted(set(changed))
    stats[changed] = scan.scan(*alphabet.encode([batch.texts[i] for i in changed]))
    return stats


def _cut_boilerplate(batch: _Batch, facts: rules.Facts) -> rules.Facts:
    """Remove lines that are page furniture for the most part, and measure the changed documents again."""
    suspects = np.flatnonzero(batch.plain & (facts.points[:, 1] > 0))
    why = "lines that are legal notices, navigation or calls to share"
    changed = batch.change("boilerplate_lines", suspects, _without_furniture, why)
    if changed:
        again = rules.gather([batch.texts[i] for i in changed])
        for fact in ("stats", "points", "repeats", "function_words"):
            getattr(facts, fact)[changed] = getattr(again, fact)
    return facts


def _without_furniture(text: str) -> str:
    """Drop the lines of which terms of page furniture cover a third, or half of that in a line that holds two of them."""
    lines = text.split("\n")
    codes, offsets = alphabet.encode(lines)
    covered = rules.lexicon().points(codes, offsets)[:, 1]
    kept = [line for line, n in zip(lines, covered, strict=True) if n == 0 or n < 0.3 * len(line.strip())]
    return "\n".join(kept).strip("\n ") if len(kept) < len(lines) else text


def _judge(batch: _Batch, facts: rules.Facts) -> np.ndarray:
    """bool [n]: which documents stay. The first rule that a document fails is its reason."""
    keep = np.ones(len(batch.texts), bool)
    for rule in rules.RULES:
        if rule.__name__ in batch.off:
            continue
        fails, values, why = rule(facts, batch.cfg)
        for i in np.flatnonzero(fails & keep & batch.plain):
            batch.tally.note("dropped", rule.__name__, batch.places[i], lambda i=i: (batch.texts[i], ""), why.format(values[i]))
            keep[i] = False
    return keep


def _mask(batch: _Batch, facts: rules.Facts, keep: np.ndarray) -> None:
    """Mask personal data in the documents that stay; the statistics say which can hold any."""
    asked = keep & batch.plain
    for rule, where, mask in (
        ("email", facts[Stat.AT_SIGNS] > 0, repairs.mask_email),
        ("id_card", facts[Stat.DIGIT_RUN] >= 17, repairs.mask_id_card),
        ("phone", facts[Stat.DIGIT_RUN] >= 10, repairs.mask_phone),
        ("ip_address", facts[Stat.DOTTED] >= 3, repairs.mask_ipv4),
        ("ip_address", facts[Stat.HEX_GROUPS] >= 2, repairs.mask_ipv6),
    ):
        batch.change(rule, np.flatnonzero(asked & where), mask, "personal data", "masked")
