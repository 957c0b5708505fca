"""Problems on their way to the rl worker: told apart into what is trained on and what is held out, too long ones left
out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from model.rewards.functions import MODEL
from model.tokens.chat import ChatTokenizer
from model.tokens.jinja import TemplateRefuses
from pipeline.config.rl import RlSection
from pipeline.data.jsonl import read_jsonl
from pipeline.formats.record import Record

SPLITS = ("train", "val")
_NEED = {"exact": "answer", "gym": "gym", "keywords": "keywords"}
_FREE = {"format", "length", "language", MODEL}
"""Rewards that need no right answer."""


def encode_problems(records: Path, tokenizer: Path, out: Path, cfg: RlSection) -> dict[str, Any]:
    """Write ``train.jsonl``, ``val.jsonl``, ``dropped.jsonl`` and ``meta.json`` into ``out``; returns counts, and what
    a person should know as ``notes``.

    Raises ValueError when more problems than ``cfg.max_dropped`` are too long for ``cfg.max_prompt_length`` or say
    nothing that ``cfg.rewards`` could go by, or when a split is empty.
    """
    chat, counts = ChatTokenizer.load(tokenizer), Counter[str]()
    out.mkdir(parents=True, exist_ok=True)
    files = {name: open(out / f"{name}.jsonl", "w", encoding="utf-8") for name in (*SPLITS, "dropped")}  # noqa: SIM115
    try:
        for record in read_jsonl(records):
            counts["records"] += 1
            place = {key: record[key] for key in ("source", "path", "line")}
            why = _unusable(record, chat, cfg)
            if why:
                counts["dropped"] += 1
                counts[f"dropped_{why[0]}"] += 1
                row = {**place, "reason": why[0], "why": why[1]}
                files["dropped"].write(json.dumps(row, ensure_ascii=False) + "\n")
                continue
            counts[record["split"]] += 1
            kept = {key: record[key] for key in ("messages", "answer", "lang", "task", "id")}
            kept |= {key: record[key] for key in ("keywords", "gym") if key in record}
            files[record["split"]].write(json.dumps(kept, ensure_ascii=False) + "\n")
    finally:
        for file in files.values():
            file.close()
    _check(counts, cfg, out)
    meta = {"format": "tokens/1", "kind": "problems", "vocab_size": chat.vocab_size, "pad_id": chat.pad_id}
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    lost = ", ".join(f"{n:,} {key.removeprefix('dropped_')}" for key, n in sorted(counts.items()) if "dropped_" in key)
    notes = [f"{counts['dropped']:,} of {counts['records']:,} problems left out: {lost}"] if counts["dropped"] else []
    lost_by = {key: n for key, n in sorted(counts.items()) if key.startswith("dropped")}
    return {**{f"problems_{name}": counts[name] for name in SPLITS}, **lost_by, "notes": notes}


def _unusable(record: Record, chat: ChatTokenizer, cfg: RlSection) -> tuple[str, str] | None:
    """Why a problem cannot be tried, as a word to count by and a sentence; None when it can."""
    if not any(weight and (name in _FREE or record.get(_NEED[name])) for name, weight in cfg.rewards.items()):
        need = ", ".join(_NEED[name] for name, weight in cfg.rewards.items() if weight and name in _NEED)
        return "nothing_to_judge_by", f"has no {need}, which the rewards ({', '.join(cfg.rewards)}) go by"
    try:
        length = len(chat.prompt(record["messages"]))
    except TemplateRefuses as refusal:
        return "template_refuses", str(refusal)
    if length > cfg.max_prompt_length:
        return "too_long", f"{length} tokens of prompt"
    return None


def _check(counts: Counter[str], cfg: RlSection, out: Path) -> None:
    dropped, seen = counts["dropped"], counts["records"]
    if dropped > cfg.max_dropped * seen:
        reasons = ", ".join(f"{key.removeprefix('dropped_')} {n}" for key, n in counts.items() if "dropped_" in key)
        raise ValueError(
            f"{dropped} of {seen} problems cannot be tried: {reasons}; examples with file and line are in"
            f" {out / 'dropped.jsonl'}. Raise rl.max_prompt_length (now {cfg.max_prompt_length}) if they are too long,"
            f" choose rl.rewards that fit, or raise rl.max_dropped (now {cfg.max_dropped})"
        )
    for split, name in (("train", "to train on"), ("val", "that are held out")):
        if not counts[split]:
            raise ValueError(f"there are no problems {name}: give more in rl.tasks or rl.sources, or raise rl.heldout")
