"""Score several models side by side: ``python -m model.score --spec FILE``, one process.

The spec is JSON: ``models`` [{"name", "path"}] from base to last, ``reference`` (the model against whose likelihoods
the implicit reward of those after it is measured, or null), ``exams`` (directory with choices, answers and preferences
as JSON lines), ``tokens`` (a token dataset whose val split gives bits per byte, or null), ``out``, ``settings``
(max_new_tokens, batch, bits_tokens, seq_len, seed), ``device`` and ``dtype``. It writes ``scores.json``,
``answers.jsonl``, ``choices.jsonl``, ``preferences.jsonl`` and ``standard.jsonl`` into ``out`` and the flat numbers to
``out/_run/result.json``. Every model, the base model too, is asked through the chat template; an item that is
``plain`` compares its choices as texts without one. The items of ``standard.jsonl`` are asked as plain text
(:mod:`model.generation.standard`). ``documents.json`` among the exams tells language and source of the val split's
documents.

What does not fit a model's window is left out of its scores and counted as ``too_long``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from model.generation.heldout import HeldOut, bits_per_byte, held_out
from model.generation.judge import Item
from model.generation.measures import chosen, credits
from model.generation.scorer import Scorer
from model.generation.standard import ask
from model.generation.standard import asked as standard_asked
from model.generation.summary import Found, Weighed, flat_metrics, judge, picked, summarise
from model.running.command import WorkerSpec, read_spec
from model.running.files import write_json, write_text

KINDS = ("choices", "answers", "preferences", "standard")


def asked(item: Item) -> str | None:
    """The words in which an item is put to a model: its context before its question, or None for plain texts."""
    if item.get("plain"):
        return None
    question = item.get("question") or item["prompt"]
    return f"{item['context']}\n\n{question}" if item.get("context") else question


def score_model(scorer: Scorer, exams: dict[str, list[Item]], text: HeldOut, settings: Item) -> Found:
    """Everything one model is asked: raw answers and likelihoods."""
    return {
        "bits_per_byte": bits_per_byte(scorer, text),
        "answers": scorer.answers([asked(item) or "" for item in exams["answers"]], settings["max_new_tokens"]),
        "cut_short": scorer.cut_short,
        "choices": _weighed(scorer, exams["choices"], [item["choices"] for item in exams["choices"]]),
        "preferences": _weighed(
            scorer, exams["preferences"], [[item["chosen"], item["rejected"]] for item in exams["preferences"]]
        ),
        "standard": ask(scorer, exams["standard"]) if exams["standard"] else [],
    }


def _weighed(scorer: Scorer, items: list[Item], texts: list[list[str]]) -> list[list[Weighed] | None]:
    """The likelihoods of each item's texts; None for an item one of whose texts does not fit."""
    flat = [(item.get("messages") or asked(item), text) for item, own in zip(items, texts, strict=True) for text in own]
    weights = iter(scorer.likelihoods(flat))
    rows = [[next(weights) for _ in own] for own in texts]
    return [None if None in row else [weight for weight in row if weight] for row in rows]


def run(spec: WorkerSpec) -> dict[str, float]:
    """Score all models of a spec and write the files; returns the flat metrics."""
    out, settings = Path(spec["out"]), spec["settings"]
    exams = {kind: _read(Path(spec["exams"]) / f"{kind}.jsonl") for kind in KINDS}
    parts = _documents(Path(spec["exams"]) / "documents.json")
    progress = _Progress(out / "_run" / "metrics.jsonl")
    found: dict[str, Found] = {}
    begun = time.monotonic()
    for name, directory in ((model["name"], model["path"]) for model in spec["models"]):
        scorer = Scorer(directory, spec["device"], spec["dtype"], settings["batch"], progress.tick)
        window = min(settings["seq_len"] or 1024, scorer.window)
        text = HeldOut([])
        if spec.get("tokens"):
            text = held_out(Path(spec["tokens"]), settings["bits_tokens"], window, parts)
        count = (
            len(exams["answers"])
            + sum(len(i["choices"]) for i in exams["choices"])
            + 2 * len(exams["preferences"])
            + len(text.pieces)
            + standard_asked(exams["standard"])
        )
        progress.expect(name, count, len(spec["models"]))
        found[name] = score_model(scorer, exams, text, settings)
    scores = summarise(exams, found, spec.get("reference"), settings["seed"])
    _write_files(out, exams, found, scores)
    metrics = flat_metrics(scores)
    write_json(out / "_run" / "result.json", {**metrics, "seconds": time.monotonic() - begun}, finite=True)
    return metrics


class _Progress:
    """Lines for whoever watches: items done of all, about once a second, and the seconds that the rest should take."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.done, self.total, self.model, self.last = path, 0, 0, "", 0.0
        self.begun = time.monotonic()
        self.path.write_text("")

    def expect(self, model: str, items: int, models: int) -> None:
        self.model, self.total = model, self.total or items * models

    def tick(self, items: int) -> None:
        self.done += items
        if time.monotonic() - self.last > 1 or self.done == self.total:
            self.last = time.monotonic()
            line: dict[str, Any] = {"step": self.done, "total_steps": self.total, "model": self.model}
            left = (self.last - self.begun) * (self.total - self.done) / max(1, self.done)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "seconds_left": round(left), "time": time.time()}) + "\n")


def _write_files(out: Path, exams: dict[str, list[Item]], found: dict[str, Found], scores: dict[str, Any]) -> None:
    verdicts = {name: judge(exams["answers"], own["answers"]) for name, own in found.items()}
    answers = [
        {
            **item,
            "said": {n: own["answers"][i] or "" for n, own in found.items()},
            "right": {n: verdicts[n][i] for n in found},
        }
        for i, item in enumerate(exams["answers"])
    ]
    choices = [
        {
            **item,
            "picked": {n: picked(item, w)[0] if (w := own["choices"][i]) else None for n, own in found.items()},
            "log_likelihood": {n: [nats for nats, _ in own["choices"][i] or []] for n, own in found.items()},
        }
        for i, item in enumerate(exams["choices"])
    ]
    preferences = [
        {
            **item,
            "log_likelihood": {
                n: {"chosen": w[0][0], "rejected": w[1][0]} if (w := own["preferences"][i]) else None
                for n, own in found.items()
            },
        }
        for i, item in enumerate(exams["preferences"])
    ]
    standard = [
        _standard(item, {n: own["standard"][i] for n, own in found.items()}) for i, item in enumerate(exams["standard"])
    ]
    files = (("answers", answers), ("choices", choices), ("preferences", preferences), ("standard", standard))
    for name, rows in files:
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        write_text(out / f"{name}.jsonl", "".join(lines))
    write_json(out / "scores.json", scores, finite=True)


def _standard(item: Item, said: dict[str, Any]) -> Item:
    """An item of a standard exam with what each model gave, but for its context, which lies in _run/exams."""
    row = {key: value for key, value in item.items() if key != "context"}
    row |= {"unasked": {n: own["why"] for n, own in said.items() if own["why"]}}
    row |= {"credit": {n: credits(item, own) for n, own in said.items() if not own["why"]}}
    if not item["choices"]:
        return {**row, "said": {n: own["answer"] for n, own in said.items()}}
    return {
        **row,
        "picked": {n: chosen(item, own) for n, own in said.items()},
        "log_likelihood": {n: own["log_likelihood"] for n, own in said.items()},
    }


def _documents(path: Path) -> dict[str, list[str]]:
    """What is known of the validation split's documents, in their order: ``{"lang": […], "source": […]}``."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read(path: Path) -> list[Item]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="\n") as lines:  # strings may hold U+2028, which splitlines would cut at
        return [json.loads(line) for line in lines]


def main() -> None:
    """The worker's command line."""
    run(read_spec(__doc__))


if __name__ == "__main__":
    main()
