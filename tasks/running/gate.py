"""Whether a run's last model becomes its preset's champion: the conditions of ``evaluate.gate`` on its scores.

The same verdict goes into the report, and, when the run is over, into the store (storage/champions.py), from where the
tracker moves MLflow's alias.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.gate import SHORT, Rule, parse_rule
from pipeline.evaluation.names import model_name
from storage.champions import Champions, Condition, Decision, ModelRef
from storage.digest import sha256_json
from storage.lineage import LineageRecord
from storage.store import Store
from tasks.running.events import Section
from tasks.running.inputs import Made

_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_ROUNDING = 1e-9
"""A score that equals its limit on paper may differ from it in the last binary digit."""
_SETS = ("answers_", "choices.", "preferences.", "exam.")
"""What may stand before the name of a set in the name of a score."""


@dataclass(frozen=True)
class Verdict:
    """The conditions of a gate on one model, and the champion that it was compared to. As a stage's input it counts by
    what it says; not known while the scores are not."""

    digest: str | None
    conditions: tuple[Condition, ...] = ()
    champion: str = ""

    @property
    def held(self) -> bool:
        return all(condition["held"] for condition in self.conditions)


@dataclass(frozen=True)
class Candidate:
    """The model that a gate is about: its artifact, what it is called in ``scores`` (the evaluate stage's flat numbers
    of all models), and the key of those."""

    preset: str
    model: ModelRef
    scores: Mapping[str, float]
    evaluated: str

    @property
    def own(self) -> dict[str, float]:
        """Its scores under names without its own."""
        return scores_of(self.scores, model_name(self.model["stage"]))

    def before(self) -> dict[str, float]:
        """The scores of the model that was scored before it; none of the first."""
        names = list(dict.fromkeys(n.partition(".")[0] for n in self.scores if n.endswith(".place")))
        names.sort(key=lambda name: self.scores[f"{name}.place"])
        own = model_name(self.model["stage"])
        at = names.index(own) if own in names else 0
        return scores_of(self.scores, names[at - 1]) if at else {}


def scores_of(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """The numbers of one model among flat ones, by their names without its own."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}


def numbers(metrics: Section) -> dict[str, float]:
    """The numbers among a stage's metrics."""
    return {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def judge(gate: Sequence[str], candidate: Candidate, store: Store) -> Verdict:
    """The verdict on a candidate. One that was decided about and is the champion, or was compared to the present one,
    is not decided about again: a run that is repeated says the same."""
    champions = Champions(store)
    now = champions.current(candidate.preset)
    place = _ref(now["model"]) if now else ""
    for decision in reversed(champions.history(candidate.preset)):
        same = decision["model"] == candidate.model and decision["evaluated"] == candidate.evaluated
        if decision["action"] != "gate" or not same or decision["before"] == candidate.model:
            continue
        if [c["text"] for c in decision["conditions"]] != list(gate):
            continue
        before = _ref(decision["before"]) if decision["before"] else ""
        if place in (before, _ref(candidate.model)):
            return _verdict(decision["conditions"], before)
        break
    rules = [parse_rule(text) for text in gate]
    return _verdict([_condition(rule, candidate, now, store) for rule in rules], place)


def found(gate: Sequence[str], preset: str, model: Made, scores: Made, store: Store) -> Verdict:
    """The verdict on an artifact by the scores in another; not known while one of them is only planned."""
    record = store.record((scores.stage, scores.key)) if scores.digest else None
    if record is None or model.digest is None:
        return Verdict(None)
    ref: ModelRef = {"stage": model.stage, "key": model.key, "digest": model.digest}
    return judge(gate, Candidate(preset, ref, numbers(record.get("metrics", {})), scores.key), store)


def decide(gate: Sequence[str], candidate: Candidate, run: str, store: Store) -> Decision:
    """Write the decision about a candidate into the store and give it; about the champion itself nothing is written."""
    champions = Champions(store)
    verdict, now = judge(gate, candidate, store), champions.current(candidate.preset)
    decision: Decision = {
        "preset": candidate.preset,
        "action": "gate",
        "model": candidate.model,
        "moved": verdict.held and (now is None or now["model"] != candidate.model),
        "before": now["model"] if now else None,
        "conditions": list(verdict.conditions),
        "scores": candidate.own,
        "evaluated": candidate.evaluated,
        "run": run,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if decision["before"] != candidate.model:
        champions.add(decision)
    return decision


def _verdict(conditions: Sequence[Condition], champion: str) -> Verdict:
    return Verdict(sha256_json([list(conditions), champion]), tuple(conditions), champion)


def _ref(model: ModelRef) -> str:
    return f"{model['stage']}/{model['key'][:12]}"


def _condition(rule: Rule, candidate: Candidate, champion: Decision | None, store: Store) -> Condition:
    if rule.fact:
        record = store.record((candidate.model["stage"], candidate.model["key"]))
        why = _withdrawn(record, store)
        return {"text": rule.text, "held": why is None, "why": why or "nothing it was made from was withdrawn"}
    value = score(candidate.own, rule.score)
    if value is None:
        return {"text": rule.text, "held": False, "why": f"the model has no score {rule.score}: it was not asked"}
    if rule.reference == "champion" and champion is None:
        return {"text": rule.text, "held": True, "why": "there is no champion yet"}
    limit, why = _limit(rule, candidate, champion)
    if limit is None:
        return {"text": rule.text, "held": False, "why": why}
    slack = {"<=": _ROUNDING, ">=": -_ROUNDING}.get(rule.sign, 0.0)
    held = bool(_SIGNS[rule.sign](value, limit + slack))
    return {"text": rule.text, "held": held, "why": f"{rule.score} is {value:.4g}, the limit {limit:.4g}{why}"}


def _limit(rule: Rule, candidate: Candidate, champion: Decision | None) -> tuple[float | None, str]:
    """What a score is held against and how it came about; without one, why there is none."""
    name = rule.score
    if not rule.reference:
        return rule.margin, ""
    if rule.reference == "chance":
        chance = score(candidate.own, f"{name}.chance")
        return (None, f"{name} has no chance line") if chance is None else (chance + rule.margin, " by guessing")
    others = {"before": candidate.before, "base": lambda: scores_of(candidate.scores, "base")}
    other = champion["scores"] if rule.reference == "champion" and champion else others[rule.reference]()
    value, size, theirs = score(other, name), score(candidate.own, f"{name}.n"), score(other, f"{name}.n")
    if value is None:
        return None, f"{rule.reference} has no score {name} to compare with; `pipeline promote --force` decides by hand"
    if size != theirs:
        return None, f"{name} is of {size or 0:,.0f} items and that of {rule.reference} of {theirs or 0:,.0f}"
    return value + rule.margin, f" ({rule.reference} has {value:.4g})"


def score(scores: Mapping[str, float], name: str) -> float | None:
    """A model's score by the name that conditions use; None when it has none."""
    first, dot, rest = name.partition(".")
    names = [name, *([f"{SHORT[first]}{dot}{rest}"] if first in SHORT else []), *(f"{s}{name}" for s in _SETS)]
    return next((scores[known] for known in names if known in scores), None)


def _withdrawn(record: LineageRecord | None, store: Store) -> str | None:
    if record is None:
        return "its lineage record cannot be read"
    why = store.withdrawals.because(record)
    return f"was withdrawn: {why}" if why else None
