"""Scores of several models from what they said, as tables and as flat numbers. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np

from model.generation.compare import changes
from model.generation.fluency import look, seen
from model.generation.judge import Item, bootstrap_mean, by_accident, groups, right, share
from model.generation.measures import HEADLINE, Said, credits
from model.generation.measures import table as exam_table

Weighed = tuple[float, int]
"""A text's log-likelihood in nats and its UTF-8 bytes."""

Row: TypeAlias = dict[str, Any]
"""A part of ``scores.json``: numbers by name, shares with their intervals, tables of them."""


class BitsPart(TypedDict):
    """Bits per byte of some of the text, with a 95 % interval, and perplexity a token."""

    value: float
    low: float
    high: float
    perplexity: float
    bytes: int


class Bits(BitsPart):
    """Bits per byte of held-out text, over how many bytes and tokens; ``parts`` by "lang.zh", "source.book" and the
    like, ``nats`` and ``sizes`` (bytes) of each piece that was read."""

    tokens: int
    parts: dict[str, BitsPart]
    nats: list[float]
    sizes: list[float]


class Found(TypedDict):
    """What one model said, in the order of the items; None where an item does not fit its window."""

    bits_per_byte: Bits | None
    answers: list[str | None]
    cut_short: int
    choices: list[list[Weighed] | None]
    preferences: list[list[Weighed] | None]
    standard: list[Said]


def values(item: Item, weights: list[Weighed]) -> list[float]:
    """What the choices are compared by: log-likelihood per UTF-8 byte, of plain texts (which are whole) as a sum."""
    return [nats if item.get("plain") else nats / max(1, size) for nats, size in weights]


def picked(item: Item, weights: list[Weighed]) -> tuple[int, float]:
    """The choice of the highest value, and what it counts: 1 when right, of equal ones a part."""
    own = values(item, weights)
    best = [i for i, value in enumerate(own) if value == max(own)]
    return best[0], (item["correct"] in best) / len(best)


def summarise(exams: dict[str, list[Item]], found: dict[str, Found], reference: str | None, seed: int) -> Row:
    """Scores of every model from what it said: shares by set and language with 95 % intervals, how many they are of,
    what guessing gives, how many items did not fit, and how each score changed from the model before."""
    scores: Row = {}
    names = list(found)
    after = names[names.index(reference) + 1 :] if reference in found else []
    accident = by_accident(exams["answers"])
    counted = {name: item_scores(exams, own) for name, own in found.items()}
    for at, (name, own) in enumerate(found.items()):
        row: Row = {"place": at, "bits_per_byte": _bits(own["bits_per_byte"])}
        row["choices"] = _choices(exams["choices"], own["choices"])
        row["answers"] = _answers(exams["answers"], own["answers"], accident)
        pairs = [(item, w) for item, w in zip(exams["preferences"], own["preferences"], strict=True) if w]
        row["preferences"] = _preferences([item for item, _ in pairs], [_margin(w) for _, w in pairs], seed)
        if name in after:
            row["against_reference"] = _rewards(exams["preferences"], own, found[str(reference)], seed)
        row["exams"] = _exams(exams["standard"], own["standard"])
        row["said"] = look(exams["answers"], own["answers"], seed)
        row["too_long"] = {
            kind: sum(one is None for one in said)
            for kind, said in (
                ("answers", own["answers"]),
                ("choices", own["choices"]),
                ("preferences", own["preferences"]),
            )
        }
        row["cut_short"] = own["cut_short"]
        if at:
            sizes = {"bits_per_byte": own["bits_per_byte"]["sizes"]} if own["bits_per_byte"] else {}
            row["against_before"] = changes(counted[name], counted[names[at - 1]], seed, sizes)
        scores[name] = row
    return scores


def item_scores(exams: Mapping[str, list[Item]], own: Found) -> dict[str, list[float | None]]:
    """What every item counts in each score, by the score's flat name; None where the model was not asked it. Of bits
    per byte the bits of each piece of text."""
    rows: dict[str, list[float | None]] = {}
    if own["bits_per_byte"]:
        rows["bits_per_byte"] = [float(nats / np.log(2)) for nats in own["bits_per_byte"]["nats"]]
    for kind in sorted({item["set"] for item in exams["answers"]}):
        rows[f"answers_{kind}"] = [
            None if said is None else float(right(item, said))
            for item, said in zip(exams["answers"], own["answers"], strict=True)
            if item["set"] == kind
        ]
    rows["choices"] = [
        picked(item, w)[1] if w else None for item, w in zip(exams["choices"], own["choices"], strict=True)
    ]
    rows["preferences"] = [
        None if not w else 0.5 if _margin(w) == 0 else float(_margin(w) > 0) for w in own["preferences"]
    ]
    rows |= {f"said.{what}": row for what, row in seen(exams["answers"], own["answers"]).items()}
    for name, items, said in _by_set(exams["standard"], own["standard"]):
        measure = HEADLINE[items[0]["form"]]
        rows[f"exam.{name}"] = [
            None if one["why"] else credits(item, one)[measure] for item, one in zip(items, said, strict=True)
        ]
    return {name: row for name, row in rows.items() if any(one is not None for one in row)}


def _bits(found: Bits | None) -> Row | None:
    return None if found is None else {k: value for k, value in found.items() if k not in ("nats", "sizes")}


def _exams(items: list[Item], said: list[Said]) -> Row:
    return {name: exam_table(own, answers) for name, own, answers in _by_set(items, said)}


def _by_set(items: list[Item], said: list[Said]) -> list[tuple[str, list[Item], list[Said]]]:
    """The items of each exam with what was said to them, in the exams' order."""
    members: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        members.setdefault(item["set"], []).append(i)
    return [(name, [items[i] for i in own], [said[i] for i in own]) for name, own in members.items()]


def _margin(weights: list[Weighed]) -> float:
    """By how many nats per byte the chosen answer is likelier than the rejected one."""
    return weights[0][0] / max(1, weights[0][1]) - weights[1][0] / max(1, weights[1][1])


def _rewards(items: list[Item], own: Found, base: Found, seed: int) -> Row:
    """Preferences by what each answer gained against the reference."""
    both = [(item, w, b) for item, w, b in zip(items, own["preferences"], base["preferences"], strict=True) if w and b]
    gained = [w[0][0] - b[0][0] - (w[1][0] - b[1][0]) for _, w, b in both]
    return _preferences([item for item, _, _ in both], gained, seed)


def _choices(items: list[Item], weights: list[list[Weighed] | None]) -> Row:
    scored = [(item, w) for item, w in zip(items, weights, strict=True) if w]
    credit = [picked(item, w)[1] for item, w in scored]
    return {
        name: share([credit[i] for i in of], float(np.mean([1 / len(scored[i][1]) for i in of])))
        for name, of in groups([item for item, _ in scored]).items()
    }


def _answers(items: list[Item], answers: list[str | None], accident: list[tuple[float, float]]) -> dict[str, Row]:
    """By set: the shares answered right. Chance is the better of two ways that know nothing (:func:`by_accident`)."""
    tables: dict[str, Row] = {}
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


def _preferences(items: list[Item], margins: list[float], seed: int) -> Row:
    """How often the chosen answer's value exceeds the rejected one's (equal ones count half), and by how much in the
    mean."""
    rows: Row = {}
    for name, of in groups(items).items():
        own = [margins[i] for i in of]
        low, high = bootstrap_mean(own, seed)
        accuracy = share([0.5 if margin == 0 else float(margin > 0) for margin in own], 0.5)
        rows[name] = {**accuracy, "margin": float(np.mean(own)), "margin_low": low, "margin_high": high}
    return rows


def flat_metrics(scores: Row) -> dict[str, float]:
    """Scores under flat names, ``<model>.<score>[.<language or set>]``, for a tracking server.

    ``<model>.exam.<name>`` is an exam's own measure, ``.acc`` and the like behind it are all of them; ``.change`` with
    ``.change_low`` and ``.change_high`` is the difference to the model before, and ``<model>.said.…`` what answers look
    like. Beside each share stands ``.n``, of how many items it is; beside those of all items ``.low``, ``.high`` and
    ``.chance`` too. ``<model>.place`` counts the models from 0, the first; ``<model>.too_long`` and
    ``<model>.cut_short`` count what did not fit, where anything did not.
    """
    flat: dict[str, float] = {}
    for name, row in scores.items():
        flat[f"{name}.place"] = row["place"]
        if row["bits_per_byte"]:
            bits = row["bits_per_byte"]
            flat[f"{name}.bits_per_byte"], flat[f"{name}.perplexity"] = bits["value"], bits["perplexity"]
            flat |= {f"{name}.bits_per_byte.{end}": bits[end] for end in ("low", "high")}
            parts = row["bits_per_byte"]["parts"].items()
            flat |= {f"{name}.bits_per_byte.{part.removeprefix('lang.')}": cell["value"] for part, cell in parts}
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
        flat |= _flat_exams(name, row["exams"])
        for what, cell in row["said"].items():
            key = f"{name}.said.{what}"
            flat |= {key: cell["value"]} | {f"{key}.{end}": cell[end] for end in ("low", "high", "n")}
        for score, change in row.get("against_before", {}).items():
            flat |= {f"{name}.{score}.{what}": change[end] for what, end in _CHANGES}
        unread = {"too_long": sum(row["too_long"].values()), "cut_short": row["cut_short"]}
        flat |= {f"{name}.{what}": count for what, count in unread.items() if count}
    return flat


_CHANGES = (("change", "difference"), ("change_low", "low"), ("change_high", "high"))


def _flat_exams(name: str, exams: Mapping[str, Row]) -> dict[str, float]:
    """The exams' scores under flat names."""
    flat: dict[str, float] = {}
    for exam, row in exams.items():
        key = f"{name}.exam.{exam}"
        flat |= {f"{key}.n": row["n"]} | ({f"{key}.unasked": row["unasked"]} if row["unasked"] else {})
        if not row["n"]:
            continue
        own = row["measures"][row["headline"]]
        flat |= {
            key: own["value"],
            f"{key}.low": own["low"],
            f"{key}.high": own["high"],
            f"{key}.chance": row["chance"],
        }
        flat |= {f"{key}.stderr": own["stderr"]}
        flat |= {f"{key}.{measure}": cell["value"] for measure, cell in row["measures"].items()}
        if "macro" in row:
            flat[f"{key}.macro"] = row["macro"][row["headline"]]
    return flat
