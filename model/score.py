"""Score several models side by side: ``python -m model.score --spec FILE``, one process.

The spec is JSON: ``models`` [{"name", "path"}] from base to last, ``reference`` (the model against whose likelihoods
the implicit reward of those after it is measured, or null), ``exams`` (directory with choices, answers and preferences
as JSON lines), ``tokens`` (a token dataset whose val split gives bits per byte, or null), ``out``, ``settings``
(max_new_tokens, batch, bits_tokens, seq_len, seed), ``device`` and ``dtype``. It writes ``scores.json``,
``answers.jsonl``, ``choices.jsonl`` and ``preferences.jsonl`` into ``out`` and the flat numbers to
``out/_run/result.json``. Every model, the base model too, is asked through the chat template; an item that is
``plain`` compares its choices as texts without one.

What does not fit a model's window is left out of its scores and counted as ``too_long``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from model.generation.heldout import Bits, HeldOut, bits_per_byte, held_out
from model.generation.judge import Item, bootstrap_mean, by_accident, groups, right, share
from model.generation.scorer import Scorer, Weighed
from model.running.files import write_json, write_text


class Found(TypedDict):
    """What one model said, in the order of the items; None where an item does not fit its window."""

    bits_per_byte: Bits | None
    answers: list[str | None]
    cut_short: int
    choices: list[list[Weighed] | None]
    preferences: list[list[Weighed] | None]


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
    }


def _weighed(scorer: Scorer, items: list[Item], texts: list[list[str]]) -> list[list[Weighed] | None]:
    """The likelihoods of each item's texts; None for an item one of whose texts does not fit."""
    flat = [(asked(item), text) for item, own in zip(items, texts, strict=True) for text in own]
    weights = iter(scorer.likelihoods(flat))
    rows = [[next(weights) for _ in own] for own in texts]
    return [None if None in row else [weight for weight in row if weight] for row in rows]


def values(item: Item, weights: list[Weighed]) -> list[float]:
    """What the choices are compared by: log-likelihood per UTF-8 byte, of plain texts (which are whole) as a sum."""
    return [nats if item.get("plain") else nats / max(1, size) for nats, size in weights]


def picked(item: Item, weights: list[Weighed]) -> tuple[int, float]:
    """The choice of the highest value, and what it counts: 1 when right, of equal ones a part."""
    own = values(item, weights)
    best = [i for i, value in enumerate(own) if value == max(own)]
    return best[0], (item["correct"] in best) / len(best)


def summarise(
    exams: dict[str, list[Item]], found: dict[str, Found], reference: str | None, seed: int
) -> dict[str, Any]:
    """Scores of every model from what it said: shares by set and language with 95 % intervals, how many they are of,
    what guessing gives, and how many items did not fit."""
    scores: dict[str, Any] = {}
    names = list(found)
    after = names[names.index(reference) + 1 :] if reference in found else []
    accident = by_accident(exams["answers"])
    for name, own in found.items():
        row: dict[str, Any] = {"place": names.index(name), "bits_per_byte": own["bits_per_byte"]}
        row["choices"] = _choices(exams["choices"], own["choices"])
        row["answers"] = _answers(exams["answers"], own["answers"], accident)
        pairs = [(item, w) for item, w in zip(exams["preferences"], own["preferences"], strict=True) if w]
        margins = [w[0][0] / max(1, w[0][1]) - w[1][0] / max(1, w[1][1]) for _, w in pairs]
        row["preferences"] = _preferences([item for item, _ in pairs], margins, seed)
        if name in after:
            base = found[str(reference)]["preferences"]
            both = [
                (item, w, b)
                for item, w, b in zip(exams["preferences"], own["preferences"], base, strict=True)
                if w and b
            ]
            gained = [w[0][0] - b[0][0] - (w[1][0] - b[1][0]) for _, w, b in both]
            row["against_reference"] = _preferences([item for item, _, _ in both], gained, seed)
        row["too_long"] = {
            kind: sum(one is None for one in said)
            for kind, said in (
                ("answers", own["answers"]),
                ("choices", own["choices"]),
                ("preferences", own["preferences"]),
            )
        }
        row["cut_short"] = own["cut_short"]
        scores[name] = row
    return scores


def _choices(items: list[Item], weights: list[list[Weighed] | None]) -> dict[str, Any]:
    scored = [(item, w) for item, w in zip(items, weights, strict=True) if w]
    credit = [picked(item, w)[1] for item, w in scored]
    return {
        name: share([credit[i] for i in of], float(np.mean([1 / len(scored[i][1]) for i in of])))
        for name, of in groups([item for item, _ in scored]).items()
    }


def _answers(
    items: list[Item], answers: list[str | None], accident: list[tuple[float, float]]
) -> dict[str, dict[str, Any]]:
    """By set: the shares answered right. Chance is the better of two ways that know nothing (:func:`by_accident`)."""
    tables: dict[str, dict[str, Any]] = {}
    for kind in sorted({item["set"] for item in items}):
        rows = [
            (item, right(item, said), lucky)
            for item, said, lucky in zip(items, answers, accident, strict=True)
            if item["set"] == kind and said is not None
        ]
        tables[kind] = {
            name: share([rows[i][1] for i in of], max(np.mean([rows[i][2] for i in of], axis=0).tolist()))
            for name, of in groups([item for item, _, _ in rows]).items()
        }
    return tables


def judge(items: Sequence[Item], answers: Sequence[str | None]) -> list[bool | None]:
    """Which answers state the right fact; None where there is none."""
    return [None if said is None else right(item, said) for item, said in zip(items, answers, strict=True)]


def _preferences(items: list[Item], margins: list[float], seed: int) -> dict[str, Any]:
    """How often the chosen answer's value exceeds the rejected one's (equal ones count half), and by how much in the
    mean."""
    rows: dict[str, Any] = {}
    for name, of in groups(items).items():
        own = [margins[i] for i in of]
        low, high = bootstrap_mean(own, seed)
        accuracy = share([0.5 if margin == 0 else float(margin > 0) for margin in own], 0.5)
        rows[name] = {**accuracy, "margin": float(np.mean(own)), "margin_low": low, "margin_high": high}
    return rows


def flat_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """Scores under flat names, ``<model>.<score>[.<language or set>]``, for a tracking server.

    Beside each share stands ``.n``, of how many items it is; beside those of all items ``.low``, ``.high`` and
    ``.chance`` too. ``<model>.place`` counts the models from 0, the first; ``<model>.too_long`` and
    ``<model>.cut_short`` count what did not fit, where anything did not.
    """
    flat: dict[str, float] = {}
    for name, row in scores.items():
        flat[f"{name}.place"] = row["place"]
        if row["bits_per_byte"]:
            flat[f"{name}.bits_per_byte"] = row["bits_per_byte"]["value"]
        tables = {
            "choices": row["choices"],
            "preferences": row["preferences"],
            "against_reference": row.get("against_reference", {}),
        }
        tables |= {f"answers_{kind}": table for kind, table in row["answers"].items()}
        for score, table in tables.items():
            for part, cell in table.items():
                key = f"{name}.{score}" + ("" if part == "all" else f".{part}")
                flat |= {key: cell["share"], f"{key}.n": cell["asked"]}
                if part == "all":
                    flat |= {f"{key}.{end}": cell[end] for end in ("low", "high", "chance")}
                if "margin" in cell:
                    flat[f"{name}.{score}_margin" + ("" if part == "all" else f".{part}")] = cell["margin"]
        unread = {"too_long": sum(row["too_long"].values()), "cut_short": row["cut_short"]}
        flat |= {f"{name}.{what}": count for what, count in unread.items() if count}
    return flat


def run(spec: dict[str, Any]) -> dict[str, float]:
    """Score all models of a spec and write the files; returns the flat metrics."""
    out, settings = Path(spec["out"]), spec["settings"]
    exams = {kind: _read(Path(spec["exams"]) / f"{kind}.jsonl") for kind in ("choices", "answers", "preferences")}
    progress = _Progress(out / "_run" / "metrics.jsonl")
    found: dict[str, Found] = {}
    begun = time.monotonic()
    for name, directory in ((model["name"], model["path"]) for model in spec["models"]):
        scorer = Scorer(directory, spec["device"], spec["dtype"], settings["batch"], progress.tick)
        window = min(settings["seq_len"] or 1024, scorer.window)
        text = held_out(Path(spec["tokens"]), settings["bits_tokens"], window) if spec.get("tokens") else HeldOut([], 0)
        count = (
            len(exams["answers"])
            + sum(len(i["choices"]) for i in exams["choices"])
            + 2 * len(exams["preferences"])
            + len(text.pieces)
        )
        progress.expect(name, count, len(spec["models"]))
        found[name] = score_model(scorer, exams, text, settings)
    scores = summarise(exams, found, spec.get("reference"), settings["seed"])
    _write_files(out, exams, found, scores)
    metrics = flat_metrics(scores)
    write_json(out / "_run" / "result.json", {**metrics, "seconds": time.monotonic() - begun}, finite=True)
    return metrics


class _Progress:
    """Lines for whoever watches: items done of all, about once a second."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.done, self.total, self.model, self.last = path, 0, 0, "", 0.0
        self.path.write_text("")

    def expect(self, model: str, items: int, models: int) -> None:
        self.model, self.total = model, self.total or items * models

    def tick(self, items: int) -> None:
        self.done += items
        if time.monotonic() - self.last > 1 or self.done == self.total:
            self.last = time.monotonic()
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"step": self.done, "total_steps": self.total, "model": self.model, "time": time.time()})
                    + "\n"
                )


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
    for name, rows in (("answers", answers), ("choices", choices), ("preferences", preferences)):
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        write_text(out / f"{name}.jsonl", "".join(lines))
    write_json(out / "scores.json", scores, finite=True)


def _read(path: Path) -> list[Item]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="\n") as lines:  # strings may hold U+2028, which splitlines would cut at
        return [json.loads(line) for line in lines]


def main() -> None:
    """The worker's command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="JSON file")
    run(json.loads(Path(parser.parse_args().spec).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
