"""The evaluation report: what the models scored and how they were trained, as one HTML page and as Markdown.

Both say the same: the scores from the first model to the last with differences, intervals and the number of items, a
mark wherever a score is no better than guessing, and answers as they were given. The bytes depend on the scores, the
answers and the curves alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.jsonl import read_jsonl
from pipeline.pages.parts.charts import Chart, Group, Interval, bars, lines
from pipeline.pages.parts.curves import read_curves
from pipeline.pages.parts.forms import Badge, Cell, Table, Tile
from pipeline.pages.parts.render import html, markdown
from pipeline.pages.report.costs import costs_table
from pipeline.pages.report.gate import Gated
from pipeline.pages.report.learning import Learning
from pipeline.pages.report.preferences import Judging
from pipeline.pages.report.scores import Answer, ModelScores, Row, comparison, pick_samples
from pipeline.pages.report.seeds import seeds_table
from pipeline.pages.report.tax import tax_rows, tax_table

HERE = Path(__file__).parent
LONGEST = 400
"""Characters shown of an answer."""
TERMS = {
    "Bits per byte": (
        "Loss on held-out text in bits per UTF-8 byte: it does not depend on the tokenizer, and lower is better. Chat"
        " training usually raises it."
    ),
    "Training questions": (
        "A sample of the questions that the sft stage trained on, answered greedily: what was learned by heart, not"
        " what was understood."
    ),
    "Held-out questions": (
        "Paraphrases that no stage trained on. The facts of the teaching set are in training, these wordings are not."
    ),
    "Answered correctly": (
        "The answer holds a keyword of every group of the fact. For sets without keywords: at least half of the"
        " reference's pairs of neighbouring characters."
    ),
    "Multiple choice": (
        "The model chooses the option with the highest log-likelihood per UTF-8 byte. The teaching set's questions were"
        " trained on with their free answers."
    ),
    "Preference accuracy": (
        "The share of pairs whose chosen answer has the higher log-likelihood per byte, asked in held-out wording."
    ),
    "Reward accuracy": (
        "The same by DPO's implicit reward, which is the gain in log-likelihood over the sft model. The margin is its"
        " mean difference in nats."
    ),
    "Exams": (
        "C-Eval, CMMLU, MMLU, ARC, HellaSwag, PIQA, OpenBookQA, GSM8K and BLiMP are asked as plain text with the"
        " prompts of lm-evaluation-harness and scored as it does: acc compares the choices' log-likelihoods, acc_norm"
        " those per character; exact_match wants the number after ####."
    ),
    "Change by stage": (
        "The difference to the model before on the very same items, with the 95 % interval of a paired bootstrap;"
        " coloured where it does not hold 0."
    ),
    "Overlap": (
        "Clean: no training text, chat or preference pair holds the question, or those that did were dropped."
        " Overlapping: some that do were trained on. In-distribution: asked on purpose about what was trained on. Too"
        " short to tell: too few words to look for in text, and not asked in a chat."
    ),
    "Intervals": (
        "95 %: Wilson for shares, bootstrap for margins; n is the number of items. A score is marked no better than"
        " guessing when its interval covers what guessing gives."
    ),
}


def write_report(
    scored: Path,
    out: Path,
    *,
    curves: Mapping[str, Path],
    samples: int = 12,
    title: str = "Evaluation",
    judged: Judging | None = None,
    gate: Gated | None = None,
    learnt: Learning | None = None,
    costs: Path | None = None,
    seeds: Sequence[Mapping[str, float]] = (),
) -> dict[str, int]:
    """Write ``report.html`` and ``report.md`` into ``out``; returns how many models, scores and samples they show.

    ``scored``: directory with the ``scores.json`` and ``answers.jsonl`` of the evaluate stage; ``curves``: the
    ``metrics.jsonl`` of each training stage by its name, drawn when it exists. Models come in the order in which they
    were trained. ``judged`` is of the stages that judge answers and ``learnt`` of reinforcement learning, if the run
    has any; ``gate`` is what ``evaluate.gate`` says of the last model, ``costs`` the costs.json of its rounded forms,
    ``seeds`` the flat scores of runs that differ by seeds alone.
    """
    scores: dict[str, ModelScores] = json.loads((scored / "scores.json").read_text(encoding="utf-8"))
    names = sorted(scores, key=lambda name: scores[name]["place"])
    models = [scores[name] for name in names]
    answers: list[Answer] = list(read_jsonl(scored / "answers.jsonl"))
    rows = comparison(models)
    shown = pick_samples(answers, samples)
    tax = tax_rows(models)
    data = {
        "title": title,
        "names": names,
        "facts": _facts(models),
        "rows": rows,
        "samples": shown,
        "longest": LONGEST,
        "terms": TERMS,
        "judged": judged,
        "gate": gate,
        "tax": tax,
        "learnt": learnt,
        "costs": costs_table(json.loads(costs.read_text(encoding="utf-8"))) if costs else None,
        "seeds": seeds_table(seeds, names),
    }
    drawn = [chart for stage, path in curves.items() if (chart := _curve(stage, path))]
    page = html(
        HERE,
        "report.html.j2",
        tiles=_tiles(rows),
        table=_table(rows, names),
        tax_table=tax_table(tax, names),
        bars=_bars(rows, names),
        curves=drawn,
        **data,
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    (out / "report.md").write_text(markdown(HERE, "report.md.j2", **data), encoding="utf-8")
    return {"models": len(names), "scores": len(rows), "samples": len(shown)}


def _facts(models: Sequence[ModelScores]) -> list[str]:
    """How many items of each kind the models were asked."""
    most = {
        "questions": max(
            sum(table["all"]["asked"] for table in m["answers"].values() if "all" in table) for m in models
        ),
        "multiple-choice items": max(m["choices"]["all"]["asked"] if m["choices"] else 0 for m in models),
        "preference pairs": max(m["preferences"]["all"]["asked"] if m["preferences"] else 0 for m in models),
    }
    return [f"{count:,} {kind}" for kind, count in most.items() if count]


def _tiles(rows: Sequence[Row]) -> list[Tile]:
    """The last model's headline numbers."""
    return [
        Tile(score.text, score.basis, row.label, Badge(score.verdict, "warn") if score.verdict else None)
        for row in rows
        if (score := row.scores[-1]) and not row.part and row.kind not in ("margin", "plain")
    ]


def _table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    parts = frozenset(i for i, row in enumerate(rows) if row.part)
    cells = [[row.label, *(_cell(row, i) for i in range(len(names)))] for row in rows]
    return Table(["", *names], cells, frozenset(range(1, len(names) + 1)), parts)


def _cell(row: Row, i: int) -> str | Cell:
    score = row.scores[i]
    if score is None:
        return "–"
    change = Badge(row.change(i), row.direction(i)) if row.change(i) else None
    badge = Badge(score.verdict, "warn") if score.verdict else None
    return Cell(score.text, note=score.basis, change=change, badge=badge)


def _bars(rows: Sequence[Row], names: Sequence[str]) -> Chart | None:
    groups = []
    for row in rows:
        shares = [score.share if score else None for score in row.scores]
        if row.kind == "share" and not row.part:
            cells = [Interval(s["share"], s["low"], s["high"], s["right"], s["asked"]) if s else None for s in shares]
            guess = next((s["chance"] for s in shares if s and "chance" in s), None)
            groups.append(Group(row.label, cells, guess))
    return bars(groups, names, "scores by model") if groups else None


def _curve(stage: str, path: Path) -> tuple[str, Chart] | None:
    """Training loss of a stage, and its held-out loss where it was measured on the way."""
    found = read_curves(path, ("loss", "val_loss"))
    series = [("training loss", found["loss"]), ("held-out loss", found["val_loss"])]
    chart = lines([s for s in series if s[1]], f"loss of {stage}", "step", height=200)
    return (stage, chart) if chart else None
