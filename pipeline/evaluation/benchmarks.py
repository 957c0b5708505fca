"""Forms of one data set each, by the field names and the counting that their authors document.

A form is found by the fields that no other has; each gives an item of kind ``choices``.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.evaluation.gold import Fields, Item, NotAnItem, by_index, by_label, choices_of, parsed, text

_YES = {"true": 1, "false": 0, "yes": 1, "no": 0, "1": 1, "0": 0}


def benchmark_item(fields: Fields) -> Item | None:
    """The item of a record of one of the data sets here; None for any other. Raises NotAnItem."""
    for needed, form in _FORMS.items():
        if all(name in fields for name in needed.split()):
            return form(fields)
    gold = fields.get("answer", fields.get("label"))
    if "passage" in fields and "choices" not in fields and str(gold).lower() in _YES:
        return _boolq(fields)
    return None


def _label(fields: Fields, options: list[str]) -> int:
    if fields.get("label") in (None, "", -1, "-1"):
        raise NotAnItem("no label; test files of this form have none: take the validation file")
    return by_index(fields["label"], options, "label")


def _hellaswag(fields: Fields) -> Item:
    options, _ = choices_of(parsed(fields["endings"]))
    topic = fields.get("activity_label")
    question = f"{topic}: {text(fields, 'ctx')}" if topic else text(fields, "ctx")
    return {"form": "hellaswag", "question": question, "choices": options, "correct": _label(fields, options)}


def _piqa(fields: Fields) -> Item:
    options = [text(fields, "sol1"), text(fields, "sol2")]
    return {"form": "piqa", "question": text(fields, "goal"), "choices": options, "correct": _label(fields, options)}


def _copa(fields: Fields) -> Item:
    options = [text(fields, "choice1"), text(fields, "choice2")]
    if fields.get("question") not in ("cause", "effect"):
        raise NotAnItem("question must be cause or effect")
    question = f"{text(fields, 'premise')}\nWhat was the {fields['question']}?"
    return {"form": "copa", "question": question, "choices": options, "correct": _label(fields, options)}


def _winogrande(fields: Fields) -> Item:
    sentence, words = text(fields, "sentence"), [text(fields, "option1"), text(fields, "option2")]
    if sentence.count("_") != 1:
        raise NotAnItem("sentence must hold one _ for the options")
    options = [sentence.replace("_", word) for word in words]
    correct = by_label(fields.get("answer"), ["1", "2"], options, "answer")
    return {"form": "winogrande", "question": "", "plain": True, "choices": options, "correct": correct}


def _social(fields: Fields) -> Item:
    options = [text(fields, name) for name in ("answera", "answerb", "answerc")]
    correct = by_label(fields.get("label"), ["1", "2", "3"], options, "label")
    return {"form": "social_iqa", "question": text(fields, "question"), "choices": options, "correct": correct}


def _sciq(fields: Fields) -> Item:
    names = ("distractor1", "distractor2", "distractor3", "correct_answer")
    return {
        "form": "sciq",
        "question": text(fields, "question"),
        "choices": [text(fields, n) for n in names],
        "correct": 3,
    }


def _boolq(fields: Fields) -> Item:
    gold = fields.get("answer", fields.get("label"))
    return {
        "form": "boolq",
        "question": text(fields, "question"),
        "choices": ["no", "yes"],
        "correct": _YES[str(gold).lower()],
    }


def _truthful(fields: Fields) -> Item:
    targets = parsed(fields["mc1_targets"])
    if isinstance(targets, dict) and "choices" not in targets:
        targets = {"choices": list(targets), "labels": list(targets.values())}
    labels = targets.get("labels") if isinstance(targets, dict) else None
    if not isinstance(labels, list) or labels.count(1) != 1:
        raise NotAnItem("mc1_targets must name one choice as right")
    options, _ = choices_of(targets["choices"])
    correct = labels.index(1)
    return {"form": "truthfulqa", "question": text(fields, "question"), "choices": options, "correct": correct}


def _blimp(fields: Fields) -> Item:
    options = [text(fields, "sentence_good"), text(fields, "sentence_bad")]
    return {"form": "blimp", "question": "", "plain": True, "choices": options, "correct": 0}


_FORMS: dict[str, Callable[[Fields], Item]] = {
    "sentence_good sentence_bad": _blimp,
    "goal sol1 sol2": _piqa,
    "ctx endings": _hellaswag,
    "sentence option1 option2": _winogrande,
    "question answera answerb answerc": _social,
    "premise choice1 choice2": _copa,
    "question correct_answer distractor1 distractor2 distractor3": _sciq,
    "question mc1_targets": _truthful,
}
