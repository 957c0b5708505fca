"""The evaluation report: what the scoring worker found, as one self-contained HTML page and as Markdown.

Both say the same: a table from the first model to the last with differences, intervals, and "at chance" wherever the
interval covers what guessing gives. Nothing is fetched by the page; the bytes depend on the scores alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pipeline.data.jsonl import read_jsonl
from pipeline.pages import svg
from pipeline.pages.report_style import STYLE

_SET_NAMES = {"training": "Training questions answered right", "heldout": "Held-out questions answered right"}
_LANGUAGES = {"zh": "Chinese", "en": "English"}
_OVERLAPS = {
    "clean": "clean",
    "overlapping": "overlapping",
    "in_distribution": "in-distribution",
    "too_short": "too short to tell",
}
EXPLANATIONS = {
    "Bits per byte": (
        "Loss on held-out text in bits per UTF-8 byte: independent of the tokenizer, lower is better. Chat training"
        " usually raises it."
    ),
    "Training questions": (
        "A sample of questions that the sft stage trained on, answered greedily: what was learned by heart, not what"
        " was understood."
    ),
    "Held-out questions": (
        "Paraphrases that no stage trained on. The facts of the teaching set are in training, these wordings are not."
    ),
    "Answered right": (
        "The answer holds a keyword of every group of the fact. Sets without keywords: half of the reference's"
        " character pairs."
    ),
    "Multiple choice": (
        "The model's choice is the option with the highest log-likelihood per UTF-8 byte. "
        "The teaching set's questions were trained on with their free answers."
    ),
    "Preference accuracy": (
        "Share of pairs whose chosen answer has the higher log-likelihood per byte, asked in held-out wording."
    ),
    "Reward accuracy": (
        "The same by DPO's implicit reward: the gain in log-likelihood over the sft model. The margin is its mean"
        " difference in nats."
    ),
    "Overlap": (
        "Clean: no training text, chat or preference pair holds the question, or those that did were dropped."
        " Overlapping: some that do were trained on. In-distribution: asked on purpose about what was trained on. Too"
        " short to tell: too few words to look for in text, and not asked in a chat."
    ),
    "Intervals": (
        '95 %: Wilson for shares, bootstrap for margins. "At chance": the interval covers what guessing gives.'
    ),
}


@dataclass(frozen=True)
class Row:
    """One line of the table. ``cells``: per model a cell of ``scores.json`` or None; ``kind`` share, bits or margin."""

    label: str
    kind: str
    cells: tuple[dict[str, Any] | None, ...]
    sub: bool = False


def write_report(
    scored: Path,
    *,
    title: str = "Evaluation",
    facts: dict[str, str] | None = None,
    curves: dict[str, Path] | None = None,
    samples: int = 12,
) -> None:
    """Write ``report.html`` and ``report.md`` beside the ``scores.json`` and ``answers.jsonl`` in ``scored``.

    ``facts``: name to value, shown under the title (preset, parameters, data); ``curves``: stage name to a training
    worker's ``metrics.jsonl``, drawn when it exists. Models come in the order in which they were scored.
    """
    scores: dict[str, Any] = json.loads((scored / "scores.json").read_text(encoding="utf-8"))
    names = sorted(scores, key=lambda name: scores[name]["place"])
    answers = list(read_jsonl(scored / "answers.jsonl"))
    rows = table(scores, names)
    shown = pick_samples(answers, samples)
    losses = {stage: read_curve(path) for stage, path in (curves or {}).items()}
    (scored / "report.html").write_text(page(title, facts or {}, names, rows, shown, losses), encoding="utf-8")
    (scored / "report.md").write_text(markdown(title, facts or {}, names, rows, shown), encoding="utf-8")


def table(scores: dict[str, Any], names: Sequence[str]) -> list[Row]:
    """The rows of the comparison; a score that no model has is left out."""
    own = [scores[name] for name in names]
    rows = [Row("Bits per byte of held-out text", "bits", tuple(row["bits_per_byte"] for row in own))]
    for kind in sorted(
        {kind for row in own for kind in row["answers"]}, key=lambda k: (k not in _SET_NAMES, k != "training", k)
    ):
        rows += _parts(
            _SET_NAMES.get(kind, f"Questions of “{kind}” answered right"),
            "share",
            [row["answers"].get(kind, {}) for row in own],
        )
    rows += _parts("Multiple choice", "share", [row["choices"] for row in own])
    rows += _parts("Preference accuracy", "share", [row["preferences"] for row in own])
    rewards = [row.get("against_reference", {}) for row in own]
    rows += _parts("Reward accuracy against the sft model", "share", rewards)
    rows.append(
        Row("Reward margin against the sft model (nats)", "margin", tuple(reward.get("all") for reward in rewards))
    )
    return [row for row in rows if any(row.cells)]


def _parts(label: str, kind: str, tables: Sequence[dict[str, Any]]) -> list[Row]:
    """A row over all items and rows of its parts by language, set and overlap with the training data; a part that is
    the whole is told in the label."""
    keys = sorted({key for table in tables for key in table if key != "all"}, reverse=True)
    overlap = [f"overlap.{name}" for name in _OVERLAPS if f"overlap.{name}" in keys]
    others = [key for key in keys if key not in overlap]
    head = Row(
        f"{label} ({_OVERLAPS[overlap[0][8:]]})" if len(overlap) == 1 else label,
        kind,
        tuple(table.get("all") for table in tables),
    )
    shown = [*(others if len(others) > 1 else []), *(overlap if len(overlap) > 1 else [])]
    names = _LANGUAGES | {f"overlap.{name}": text for name, text in _OVERLAPS.items()}
    return [
        head,
        *(Row(names.get(key, key), kind, tuple(table.get(key) for table in tables), sub=True) for key in shown),
    ]


def cell_text(row: Row, i: int) -> tuple[str, str, str, str]:
    """(value, interval, difference to the model before, "at chance" or "below chance") of one cell; empty strings where
    there is none."""
    cell = row.cells[i]
    if cell is None:
        return "", "", "", ""
    before = row.cells[i - 1] if i else None
    if row.kind == "bits":
        return (
            f"{cell['value']:.3f}",
            f"{cell['bytes']:,} bytes",
            f"{cell['value'] - before['value']:+.3f}" if before else "",
            "",
        )
    if row.kind == "margin":
        chance = "at chance" if cell["margin_low"] <= 0 <= cell["margin_high"] else ""
        return (
            f"{cell['margin']:+.2f}",
            f"{cell['margin_low']:+.2f} to {cell['margin_high']:+.2f}",
            f"{cell['margin'] - before['margin']:+.2f}" if before else "",
            chance,
        )
    change = f"{100 * (cell['share'] - before['share']):+.1f}" if before else ""
    return f"{cell['share']:.1%}", f"{cell['low']:.0%}–{cell['high']:.0%} of {cell['asked']}", change, _chance(cell)


def _chance(cell: dict[str, Any]) -> str:
    if cell.get("at_chance"):
        return "at chance"
    return "below chance" if cell["high"] < cell.get("chance", 0) else ""


def pick_samples(answers: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Held-out questions first, languages in turn, spread evenly over the set."""
    pool = [a for a in answers if a["set"] != "training"] or answers
    langs = sorted({a["lang"] for a in pool}, reverse=True)
    chosen: list[dict[str, Any]] = []
    for turn, lang in enumerate(langs):
        own = [a for a in pool if a["lang"] == lang]
        share = count // len(langs) + (turn < count % len(langs))
        chosen += [own[i * len(own) // share] for i in range(min(share, len(own)))]
    return chosen


def read_curve(path: Path) -> list[tuple[float, float]]:
    """(step, training loss) of every line of a worker's metrics that has both; an unreadable line is left out."""
    points: list[tuple[float, float]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            points.append((float(record["step"]), float(record["loss"])))
        except (ValueError, KeyError, TypeError):
            continue
    return points


def page(
    title: str,
    facts: dict[str, str],
    names: Sequence[str],
    rows: list[Row],
    samples: list[dict[str, Any]],
    losses: dict[str, list[tuple[float, float]]],
) -> str:
    """The HTML page."""
    arrow = " → ".join(map(escape, names))
    lead = " · ".join(f"{escape(k)}: {escape(v)}" for k, v in facts.items()) or arrow
    sections = [
        f"<h2>The {escape(names[-1])} model</h2>" + _tiles(rows, names),
        _section(f"Scores, and differences to the model before: {arrow}", _html_table(rows, names)),
        _section("Shares with 95 % intervals", _bars(rows, names)),
    ]
    for i, (stage, points) in enumerate(losses.items()):
        drawn = svg.lines([(stage, points)], f"training loss of {stage}", "step", height=190, first=i)
        sections.append(_section(f"Training loss: {stage}", drawn) if drawn else "")
    if samples:
        sections.append(_section("What they say", "".join(_html_sample(sample, names) for sample in samples)))
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in EXPLANATIONS.items())
    sections.append(_section("How to read this", f"<dl>{terms}</dl>"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>\n{STYLE}</style></head>\n<body><main><h1>{escape(title)}</h1><p class="lead">{lead}</p>\n'
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{heading}</h2>{body}</section>"


def _tiles(rows: list[Row], names: Sequence[str]) -> str:
    """The last model's headline numbers."""
    tiles = []
    for row in rows:
        value, interval, _, chance = cell_text(row, len(names) - 1)
        if value and not row.sub and row.kind != "margin":
            note = f'<span class="badge chance-badge">{chance}</span>' if chance else f"<span>{escape(interval)}</span>"
            tiles.append(f'<div class="tile"><span>{escape(row.label)}</span><b>{value}</b>{note}</div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _html_table(rows: list[Row], names: Sequence[str]) -> str:
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    body = []
    for row in rows:
        cells = "".join(f'<td class="number">{_html_cell(row, i)}</td>' for i in range(len(names)))
        body.append(f"<tr{' class=sub' if row.sub else ''}><td>{escape(row.label)}</td>{cells}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _html_cell(row: Row, i: int) -> str:
    value, interval, change, chance = cell_text(row, i)
    if not value:
        return '<span class="same">–</span>'
    number = float(change or 0) * (-1 if row.kind == "bits" else 1)
    kind = "up" if number > 0 else "down" if number < 0 else "same"
    delta = f' <span class="{kind}">{change}</span>' if change else ""
    badge = f'<br><span class="badge chance-badge">{chance}</span>' if chance else ""
    return f"{value}{delta}<small>{escape(interval)}</small>{badge}"


def _bars(rows: list[Row], names: Sequence[str]) -> str:
    groups = []
    for row in rows:
        if row.kind == "share" and not row.sub:
            cells = [(c["share"], c["low"], c["high"]) if c else None for c in row.cells]
            groups.append(
                (
                    row.label.replace(" answered right", "").replace(" against the sft model", "").partition(" (")[0],
                    cells,
                    next((c["chance"] for c in row.cells if c and "chance" in c), None),
                )
            )
    legend = "".join(
        f'<span><i style="background:var(--series-{i % 6})"></i>{escape(name)}</span>' for i, name in enumerate(names)
    )
    return f'<p class="legend">{legend}<span>┆ chance</span></p>{svg.bars(groups, names, "scores by model")}'


def _html_sample(sample: dict[str, Any], names: Sequence[str]) -> str:
    lines = []
    for name in names:
        verdict = "right" if sample["right"][name] else "wrong"
        said = escape(sample["said"][name][:400]) or "<em>nothing</em>"
        lines.append(
            f'<p><span class="who">{escape(name)}</span> <span class="badge {verdict}">{verdict}</span> {said}</p>'
        )
    return (
        f'<div class="sample"><p><b>{escape(sample["question"])}</b></p>{"".join(lines)}<p class="expected">expected:'
        f" {escape(str(sample['answer']))}</p></div>"
    )


def markdown(
    title: str, facts: dict[str, str], names: Sequence[str], rows: list[Row], samples: list[dict[str, Any]]
) -> str:
    """The same as Markdown."""
    lines = [f"# {title}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()] + ([""] if facts else [])
    lines += markdown_table(rows, names)
    if samples:
        lines += ["", "## What they say", ""]
    for sample in samples:
        lines += [f"**{_one_line(sample['question'])}**", ""]
        lines += [
            f"- {name} ({'right' if sample['right'][name] else 'wrong'}):"
            f" {_one_line(sample['said'][name])[:400] or '(nothing)'}"
            for name in names
        ]
        lines += [f"- expected: {_one_line(str(sample['answer']))}", ""]
    lines += ["", "## How to read this", ""] + [f"- **{term}**: {text}" for term, text in EXPLANATIONS.items()]
    return "\n".join(lines) + "\n"


def markdown_table(rows: list[Row], names: Sequence[str]) -> list[str]:
    """The comparison as lines of a Markdown table."""
    head = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    return head + [
        "| "
        + ("&nbsp;&nbsp;" if row.sub else "")
        + row.label
        + " | "
        + " | ".join(_md_cell(row, i) for i in range(len(names)))
        + " |"
        for row in rows
    ]


def _md_cell(row: Row, i: int) -> str:
    value, interval, change, chance = cell_text(row, i)
    return (
        f"{value}{f' ({change})' if change else ''}{f', {chance}' if chance else ''} <sub>{interval}</sub>"
        if value
        else "–"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
