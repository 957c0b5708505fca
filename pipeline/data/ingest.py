"""The ingest stage: files of any format to one document artifact, with every record accounted for.

Large files are cut into ranges of whole lines (or row groups), small ones are put together, and each such job writes
one Parquet part, in parallel and resumably. A document's id is a hash of its source, its file's content and its line,
so it can be followed to the final shard and back. What cannot be read is counted by reason and sampled with file and
line; too much of it fails the stage.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from model.tokens.render import render_chat
from pipeline.config.base import Progress, quiet
from pipeline.config.data import IngestSection
from pipeline.data.cut import cut_files, piece_bytes
from pipeline.data.documents import ROW_GROUP, SCHEMA, WORKING, Tally, finish, flat
from pipeline.data.text import whole
from pipeline.formats.bad import BadRecord
from pipeline.formats.chat import as_chat
from pipeline.formats.ids import own_id
from pipeline.formats.kinds import MARKS, kind_of, text_of
from pipeline.formats.preference import as_preference
from pipeline.readers import Fault, Text, read, recoded_rule, recoded_why
from pipeline.readers.streams import Piece
from pipeline.running.executor import run_shards
from pipeline.running.jobs import Job
from pipeline.sources import Source
from pipeline.sources.state import confirm
from storage.files import discard, unfinished

LEFT_OUT = frozenset({"sampled_out", "not_a_page", "http_error"})
"""Reasons that are a choice and not a defect: they do not count towards ``max_bad_share``."""
_ROWS = 4096


def ingest(
    cfg: IngestSection,
    sources: Sequence[Source],
    out: Path,
    *,
    workers: int = 1,
    engine: str = "local",
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Read ``sources`` into the document artifact ``out``; returns flat metrics.

    Raises ValueError when nothing can be read or when more than ``cfg.max_bad_share`` of a source is unreadable, with
    the reasons, an example and the knob; ``out`` then keeps ``stats.json`` and ``samples.jsonl`` to look at.
    """
    _known(cfg, sources)
    out.mkdir(parents=True, exist_ok=True)
    work = out / "_run" / "ingest"
    jobs = _jobs(cfg, sources, out, work, workers, engine)
    results = run_shards(ingest_job, jobs, workers=workers, done=work / "done", engine=engine, progress=progress)
    blank = {
        "numbers": {},
        "dropped": {},
        "changed": {},
        "samples": {},
        "by_lang": {},
        "by_source": {s.name: {} for s in sources},
    }
    bad: dict[str, dict[str, int]] = {}
    for result in results:
        for name, reasons in result["bad"].items():
            mine = bad.setdefault(name, {})
            for reason, n in reasons.items():
                mine[reason] = mine.get(reason, 0) + n
    skipped = {s.name: len(s.skipped) for s in sources if s.skipped}
    stats = finish(
        out,
        [blank, *results],
        bad_by_source=bad,
        files={s.name: len(s.files) for s in sources},
        files_of_unknown_type=skipped,
    )
    _judge(cfg, stats, out)
    discard(work / "spool")
    return flat(stats)


def _known(cfg: IngestSection, sources: Sequence[Source]) -> None:
    names = [s.name for s in sources]
    strangers = sorted(set(cfg.sample) - set(names))
    if strangers:
        raise ValueError(f"ingest.sample: no source is named {', '.join(strangers)}; sources are {', '.join(names)}")


def _judge(cfg: IngestSection, stats: dict[str, Any], out: Path) -> None:
    """Fail when a source is worse than the config allows, or when nothing is left."""
    problems = []
    for name, reasons in sorted(stats["bad_by_source"].items()):
        seen, bad = stats["by_source"][name]["docs_in"], sum(reasons.values())
        if bad > cfg.max_bad_share * seen:
            listing = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items(), key=lambda r: -r[1]))
            problems.append(
                f"source {name}: {bad} of {seen} records cannot be used ({bad / seen:.1%}): {listing}; examples with"
                f" file and line are in {out / 'samples.jsonl'}. ingest.max_bad_share = {cfg.max_bad_share} is the"
                " share that is tolerated: mend the data or raise it"
            )
    if not problems and not stats["docs_out"]:
        problems.append(
            f"no document in {', '.join(sorted(stats['by_source']))}: nothing would be left to train on"
            " (ingest.sources, ingest.sample)"
        )
    if problems:
        raise ValueError("\n".join(problems))


def _jobs(
    cfg: IngestSection, sources: Sequence[Source], out: Path, work: Path, workers: int, engine: str
) -> Iterator[Job]:
    """Pieces put together to about the same size, in source and file order; a function of the input alone."""
    files = [
        {
            "source": s.name,
            "relpath": f.relpath,
            "location": f.location,
            "bytes": f.bytes,
            "sha256": f.sha256,
            "state": list(f.state),
            "origin": f.location,
        }
        for s in sources
        for f in s.files
    ]
    common = {
        "out": str(out), "sample": cfg.sample, "text_fields": list(cfg.text_fields), "id_fields": list(cfg.id_fields),
        "max_record": cfg.max_record_mb << 20, "max_text": cfg.max_text_chars, "ignored": list(cfg.ignore_fields),
    }  # fmt: skip
    pieces = cut_files(files, cfg, work, workers=workers, engine=engine)
    for index, group in enumerate(_gathered(pieces, piece_bytes(files, cfg))):
        yield {**common, "pieces": group, "index": index, "shard": f"{group[0]['source']}: {group[0]['relpath']}"}


def _gathered(pieces: Iterator[Job], size: int) -> Iterator[list[Job]]:
    """Runs of pieces of up to ``size`` bytes together; a larger piece is alone."""
    group: list[Job] = []
    held = 0
    for piece in pieces:
        if group and held + piece["bytes"] > size:
            yield group
            group, held = [], 0
        group.append(piece)
        held += piece["bytes"]
        if held >= size:  # without waiting for the next piece, which may take time to be cut
            yield group
            group, held = [], 0
    if group:
        yield group


def ingest_job(job: Job) -> Job:
    """Read one job's pieces into one part (none when they hold no document); returns its tally and the bad records by
    source."""
    tally, bad = Tally(), {}
    path = Path(job["out"], f"part-{job['index']:05d}.parquet")
    with _Part(path, tally) as part:
        for piece in job["pieces"]:
            _Piece(job, piece, part, tally, bad).read()
            confirm(piece["origin"], f"{piece['source']}/{piece['relpath']}", piece["state"], piece["sha256"])
    return {**tally.json(), "by_lang": {}, "bad": bad}  # languages are not known yet


class _Piece:
    """One piece on its way into a part: recognises each record, gives it its id, and books what is lost."""

    def __init__(self, job: Job, piece: Job, part: _Part, tally: Tally, bad: dict[str, dict[str, int]]) -> None:
        self.piece, self.part, self.tally, self.bad = piece, part, tally, bad
        self.source, self.relpath = piece["source"], piece["relpath"]
        self.text_fields, self.id_fields = tuple(job["text_fields"]), tuple(job["id_fields"])
        self.ignored = frozenset(job["ignored"])
        self.limits = {"max_record": job["max_record"], "max_text": job["max_text"]}
        self.take = round(job["sample"].get(self.source, 1.0) * 2**32)
        self.hash = hashlib.sha256(
            f"{self.source}\0{piece['sha256']}\0{self.relpath}\0".encode("utf-8", "surrogateescape")
        )
        self.seen = self.chars = 0

    def read(self) -> None:
        """Book every record of the piece as a document or as lost."""
        if self.piece["format"] in ("python-docs", "teaching", "arithmetic"):
            for document in _built_in(self.piece):
                self._built_in(document)
        else:
            piece: Job = {**self.piece, **self.limits, "columns": [*self.text_fields, *self.id_fields], "unless": MARKS}
            for line, record in read(cast(Piece, piece)):
                self._record(line, record)
            if "recoded" in piece:
                line = piece.get("first_line", 1)
                self._note("changed", recoded_rule(piece["recoded"]), "", line, "", recoded_why(piece["recoded"]))
        self.tally.numbers["docs_in"] += self.seen
        self.tally.numbers["chars_in"] += self.chars
        self.tally.by["by_source"].setdefault(self.source, Counter())["docs_in"] += self.seen

    def _built_in(self, document: dict[str, Any]) -> None:
        self.seen += 1
        key = "\0".join((self.source, document["path"], document["id"], document["text"]))
        self._keep(
            hashlib.sha256(key.encode()).hexdigest()[:32],
            document["path"],
            document["line"],
            document["text"],
            document["id"],
            "text",
        )

    def _record(self, line: int, record: Any) -> None:
        self.seen += 1
        digest = self.hash.copy()
        digest.update(b"%d" % line)
        name = digest.hexdigest()[:32]
        text = record.get(self.text_fields[0]) if type(record) is dict and MARKS.isdisjoint(record) else None
        if type(text) is str and text and not text.isspace():  # the common case without the questions below
            self._keep(name, self.relpath, line, text, own_id(record, self.id_fields), "text")
        elif isinstance(record, Fault):
            self._lose(name, line, record.reason, record.detail, record.raw.decode("utf-8", "replace"))
        elif isinstance(record, Text):
            if record.repaired:
                self._note(
                    "changed", "replaced_bytes", name, line, record.text, "bytes that are not UTF-8 became U+FFFD"
                )
            if record.text.strip():
                self._keep(name, self.relpath, line, record.text, record.id, "text")
            else:
                self._lose(name, line, "empty_text", "nothing but blanks", "")
        else:
            try:
                text, kind = self._text(record)
            except BadRecord as error:
                self._lose(
                    name, line, error.reason, error.detail, json.dumps(record, ensure_ascii=False, default=str)[:400]
                )
                return
            self._keep(name, self.relpath, line, text, own_id(record, self.id_fields), kind)

    def _text(self, record: Any) -> tuple[str, str]:
        kind = kind_of(record, self.text_fields)
        if kind == "text":
            return text_of(record, self.text_fields), "text"
        if kind == "chat":
            messages = as_chat(record, self.ignored)["messages"]
            if not all(message.get("learn", True) for message in messages):
                raise BadRecord(
                    "turn_weight", "an answer is marked as not to be learnt; text is learnt from end to end"
                )
            return render_chat(messages), "chat"
        pair = as_preference(record, self.ignored)
        return render_chat([*pair["prompt"], {"role": "assistant", "content": pair["chosen"]}]), "chat"

    def _keep(self, name: str, path: str, line: int, text: str, origin: str | None, kind: str) -> None:
        self.chars += len(text)
        if self.take < 2**32 and int(name[:8], 16) >= self.take:
            self._note("dropped", "sampled_out", name, line, text, "ingest.sample takes a share of this source")
            return
        self.part.add((name, text, None, self.source, path, line, origin, kind))

    def _lose(self, name: str, line: int, reason: str, why: str, before: str) -> None:
        self._note("dropped", reason, name, line, before, why)
        if reason not in LEFT_OUT:
            mine = self.bad.setdefault(self.source, {})
            mine[reason] = mine.get(reason, 0) + 1

    def _note(self, action: str, rule: str, name: str, line: int, before: str, why: str) -> None:
        place = {"id": name, "source": self.source, "path": self.relpath, "line": line}
        self.tally.note(action, rule, place, lambda: (whole(before[:400]), ""), whole(why[:400]))


def _built_in(piece: Job) -> Iterator[Job]:
    if piece["format"] == "python-docs":
        from pipeline.sources.python_docs import read_run

        return read_run(piece)
    if piece["format"] == "arithmetic":
        from pipeline.problems.arithmetic import arithmetic_texts

        return arithmetic_texts()
    from pipeline.sources.teaching import teaching_texts

    return (text for text in teaching_texts() if text["path"] == piece["relpath"])


def _table(rows: list[tuple[Any, ...]]) -> pa.Table:
    """Rows in the order of the schema as a table. UnicodeEncodeError when a text holds half of a surrogate pair."""
    columns = zip(zip(*rows, strict=True), SCHEMA, strict=True)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in columns], schema=SCHEMA)


class _Part:
    """The part that a job writes: rows are gathered into row groups, and the file appears under its name when it is
    whole."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self.path, self.partial, self.tally = path, unfinished(path), tally
        self.rows: list[tuple[Any, ...]] = []
        self.chars = 0
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Part:
        return self

    def add(self, row: tuple[Any, ...]) -> None:
        """Add a row in the order of the schema."""
        self.rows.append(row)
        self.chars += len(row[1])
        if len(self.rows) >= _ROWS or self.chars > 1 << 24:
            self._flush()

    def _flush(self) -> None:
        if not self.rows:
            return
        try:
            table = _table(self.rows)
        except UnicodeEncodeError:
            table = _table([self._mended(row) for row in self.rows])
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.partial, SCHEMA, **WORKING)
        self.writer.write_table(table, row_group_size=ROW_GROUP)
        self.tally.count("out", table)
        self.rows, self.chars = [], 0

    def _mended(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row that UTF-8 can hold, and a note if its text could not be before."""
        name, text, lang, source, path, line, origin, kind = row
        fixed = whole(text)
        if fixed is not text:
            place = {"id": name, "source": source, "path": path, "line": line}
            self.tally.note(
                "changed", "lone_surrogate", place, lambda: (fixed[:400], ""), "half of a surrogate pair became U+FFFD"
            )
        return name, fixed, lang, source, path, line, origin and whole(origin), kind

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._flush()
        if self.writer is not None:
            self.writer.close()
            if kind is None:
                os.replace(self.partial, self.path)
            else:
                self.partial.unlink(missing_ok=True)
