"""The clean stage: repair what can be repaired, drop what is not a text, mask personal data, and say why each time.

Chat documents were rendered through the chat template and get the Unicode repairs only. The work goes batch by batch:
one compiled pass tells which documents need which repair, so the Python code below touches only those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.base import Progress, quiet
from pipeline.config.cleaning import CleanSection
from pipeline.data import repairs, rules
from pipeline.data.batches import batches
from pipeline.data.documents import SCHEMA, Tally, finish, flat, plan, read_job, write_part
from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import CONTROL
from pipeline.kernels.columns import Stat
from pipeline.running.executor import run_shards
from pipeline.running.jobs import Job


def clean(
    cfg: CleanSection, docs: Path, out: Path, *, workers: int = 1, engine: str = "local", progress: Progress = quiet
) -> dict[str, float]:
    """Clean a document artifact into `out`; returns the flat metrics of ``stats.json``.

    Args:
        docs: artifact of Parquet parts (see pipeline.data.documents).
        workers, engine: how to run; they change no byte of the output.
    Raises:
        ValueError: `docs` holds no parts. ShardFailed: a shard could not be done.
    """
    out.mkdir(parents=True, exist_ok=True)
    jobs = [{**job, "out": str(out), "cfg": cfg.model_dump(mode="json")} for job in plan(docs)]
    results = run_shards(clean_job, jobs, workers=workers, done=out / "_run" / "done", engine=engine, progress=progress)
    return flat(finish(out, results))


def clean_job(job: Job) -> Job:
    """Clean one shard and write its part; returns its tally."""
    cfg, table, tally = CleanSection(**job["cfg"]), read_job(job), Tally()
    tally.count("in", table)
    cleaned = pa.concat_tables([_clean_batch(batch, cfg, tally) for batch in batches(table)] or [table])
    tally.count("out", cleaned)
    write_part(Path(job["out"]), job["index"], cleaned)
    return tally.json()


class _Batch:
    """The texts of a batch with the bookkeeping of what happened to them. A text becomes a Python string only when it
    is asked for."""

    def __init__(self, table: pa.Table, cfg: CleanSection, tally: Tally) -> None:
        self.table, self.cfg, self.tally, self.off = table, cfg, tally, frozenset(cfg.disabled_rules)
        self.column = table["text"].combine_chunks()
        self.changed: dict[int, str] = {}
        self.plain = np.array([kind != "chat" for kind in table["kind"].to_pylist()], bool)
        self.places = table.select(["id", "source", "path", "line"]).to_pylist()

    def __getitem__(self, i: int) -> str:
        return self.changed[i] if i in self.changed else self.column[i].as_py()

    def texts(self) -> pa.Array:
        """The column as it is now."""
        if not self.changed:
            return self.column
        where = np.zeros(len(self.column), bool)
        where[list(self.changed)] = True
        texts = pa.array([self.changed[i] for i in sorted(self.changed)], pa.string())
        # pyarrow makes this function on import
        return pc.replace_with_mask(self.column, pa.array(where), texts)  # pyright: ignore[reportAttributeAccessIssue]

    def change(
        self, rule: str, where: np.ndarray | list[int], repair: Callable[[str], str], why: str, action: str = "changed"
    ) -> list[int]:
        """Apply `repair` to the texts numbered in `where`; count and sample those that it changed, and return their
        numbers."""
        changed = []
        for i in map(int, where) if rule not in self.off else ():
            before = self[i]
            after = repair(before)
            if after != before:
                self.changed[i] = after
                changed.append(i)
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
    facts = rules.gather(batch.column)
    _repair(batch, facts)
    _cut_boilerplate(batch, facts)
    keep = _judge(batch, facts)
    _mask(batch, facts, keep)
    return table.set_column(SCHEMA.get_field_index("text"), SCHEMA.field("text"), batch.texts()).filter(pa.array(keep))


def _repair(batch: _Batch, facts: rules.Facts) -> None:
    """HTML, wrong decoding, control characters, NFC, white space: in this order, each where the facts ask for it."""
    tags = np.flatnonzero(batch.plain & (facts[Stat.OPENS_WITH_TAG] > 0))
    pages = [i for i in tags.tolist() if repairs.is_html(batch[i])] if "html" not in batch.off else []
    _measure_again(batch, facts, batch.change("html", pages, repairs.main_text, "an HTML page: its main text"))
    suspects = np.flatnonzero(facts[Stat.MOJIBAKE])
    _measure_again(
        batch,
        facts,
        batch.change("mojibake", suspects, repairs.repair_mojibake, "UTF-8 or GBK had been read in another encoding"),
    )
    controls = np.flatnonzero(facts[CONTROL])
    changed = batch.change("control_characters", controls, repairs.strip_controls, "control or zero-width characters")
    loose = np.flatnonzero((facts[Stat.UNCOMPOSED] > 0) | np.isin(np.arange(len(batch.plain)), changed))
    changed += batch.change("unicode_nfc", loose, repairs.nfc, "not in Unicode normal form C")
    untidy = np.flatnonzero(batch.plain & (facts[Stat.UNTIDY] + facts[CONTROL] > 0))
    batch.change(
        "whitespace", untidy, repairs.tidy, "spaces at line ends, odd spaces or runs of blank lines"
    )  # asked of no rule
    _measure_again(batch, facts, sorted(set(changed)))


def _measure_again(batch: _Batch, facts: rules.Facts, changed: list[int]) -> None:
    if changed:
        facts.update(changed, rules.gather([batch[i] for i in changed]))


def _cut_boilerplate(batch: _Batch, facts: rules.Facts) -> None:
    """Remove lines that are page furniture for the most part, and measure the changed documents again."""
    suspects = np.flatnonzero(batch.plain & (facts.points[:, 1] > 0))
    why = "lines that are legal notices, navigation or calls to share"
    _measure_again(batch, facts, batch.change("boilerplate_lines", suspects, _without_furniture, why))


def _without_furniture(text: str) -> str:
    """Drop the lines of which terms of page furniture cover a third, or half of that in a line that holds two of
    them."""
    lines = text.split("\n")
    covered = rules.lexicon().points(*alphabet.utf8(lines))[:, 1]
    kept = [line for line, n in zip(lines, covered, strict=True) if n == 0 or n < 0.3 * len(line.strip())]
    return "\n".join(kept).strip("\n ") if len(kept) < len(lines) else text


def _judge(batch: _Batch, facts: rules.Facts) -> np.ndarray:
    """bool [n]: which documents stay. The first rule that a document fails is its reason."""
    keep = np.ones(len(batch.plain), bool)
    for rule in rules.RULES:
        if rule.__name__ in batch.off:
            continue
        fails, values, why = rule(facts, batch.cfg)
        for i in np.flatnonzero(fails & keep & batch.plain):
            batch.tally.note(
                "dropped", rule.__name__, batch.places[i], lambda i=int(i): (batch[i], ""), why.format(values[i])
            )
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
        ("ip_address", facts[Stat.HEX_GROUPS] > 0, repairs.mask_ipv6),
    ):
        batch.change(rule, np.flatnonzero(asked & where), mask, "personal data", "masked")
