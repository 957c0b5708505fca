"""Problems with an answer that can be checked: questions with answers, GSM8K, chats without their last answer.

Recognised are ``question``/``problem``/``prompt`` with ``answer``/``solution``/``ground_truth`` (GSM8K's and MATH's
final answer is taken out of its working), lists of turns (OpenAI's, MiniMind's RLAIF form, whose last answer is empty
or "无") with one of those beside them or none, and verl's ``reward_model``. ``keywords`` are groups of words of which
an answer needs one each; several targets (MiniMind's ``gt``) are such groups.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pipeline.formats.chat import lead, prompt_turns, turns_field
from pipeline.formats.fields import refuse_unused
from pipeline.formats.messages import BadRecord, fold, parse_if_json
from pipeline.formats.record import Record

ASKS = ("question", "problem", "prompt", "instruction", "query")
TARGETS = ("answer", "ground_truth", "gt", "target", "solution", "final_answer", "expected_answer", "label")
NOTHING = ("", "无", "空", "None", "null")
"""What stands in MiniMind's RLAIF files where the answer is to come."""
_FINAL = re.compile(r"####\s*(.+?)\s*$", re.DOTALL)
_BOXED = "\\boxed{"
_HAN = re.compile(r"[一-鿿]")


def is_problem(record: Any) -> bool:
    """Whether a record could be a problem: it asks something."""
    return isinstance(record, dict) and (turns_field(record) is not None or any(name in record for name in ASKS))


def as_problem(record: Any, ignored: Collection[str] = ()) -> dict[str, Any]:
    """``{"messages", "answer", "lang", "task"[, "keywords"]}`` of a record of any form; raises BadRecord."""
    if not isinstance(record, dict):
        raise BadRecord("not_an_object", type(record).__name__)
    record = {name: value for name, value in record.items() if name not in ignored}
    if "chosen" in record and "rejected" in record:
        raise BadRecord("a_pair", "preference pairs are learnt from in dpo.sources")
    system, tools, used = lead(record, ignored)
    if parse_if_json(tools):
        raise BadRecord("tools", "problems whose answers call tools cannot be tried out here")
    turns, names = _turns(record, ignored)
    messages = fold(turns, system=system, ignored=ignored)
    if not messages or messages[-1]["role"] != "user":
        raise BadRecord("no_question", "the last turn is not the user's")
    field, targets = _targets(record)
    groups = _keywords(record)
    said = "\n".join(message["content"] for message in messages)
    used = used | names | {field, "keywords", "reward_model", "choices"}
    refuse_unused(record, used | {"solution", "rationale", "cot"}, said, ignored=ignored, also=("title", "description"))
    if len(targets) > 1:
        groups, targets = [*groups, *[[target] for target in targets]], []
    answer = final_answer(targets[0]) if targets else ""
    if field in record and targets and not answer:
        raise BadRecord("no_answer", f"{field} is empty")
    task = next((str(record[name]) for name in ("task", "category", "subject", "type") if record.get(name)), "")
    problem = {"messages": messages, "answer": answer, "lang": _lang(record, messages[-1]["content"]), "task": task}
    return problem | ({"keywords": groups} if groups else {})


def _turns(record: Record, ignored: Collection[str]) -> tuple[list[Any], set[str]]:
    """The turns up to the answer that is wanted, and the fields they are made of."""
    name = turns_field(record) or next((n for n in ("prompt",) if isinstance(parse_if_json(record.get(n)), list)), None)
    if name is None:
        known = next((n for n in ASKS if record.get(n) is not None), None)
        if known is None:
            raise BadRecord("unknown_form", "fields " + ", ".join(sorted(map(str, record))[:8]))
        given = {**record, "question": record[known]} if known == "problem" else record
        turns, used = prompt_turns(given, ignored)
        return turns, used | {known}
    turns = list(parse_if_json(record[name]))
    last = turns[-1] if turns and isinstance(turns[-1], dict) else {}
    role = str(last.get("role") or last.get("from") or "").strip().lower()
    if role in ("assistant", "gpt", "model", "bot", "助手"):
        said = last.get("content", last.get("value"))
        if isinstance(said, str) and said.strip() not in NOTHING:
            raise BadRecord("answered", "the last turn is an answer already: chats to learn are given in sft.sources")
        turns = turns[:-1]
    return turns, {name}


def _targets(record: Record) -> tuple[str, list[str]]:
    """The field that holds the right answer, and what is in it."""
    nested = parse_if_json(record.get("reward_model"))
    if isinstance(nested, dict) and nested.get("ground_truth") is not None:
        return "reward_model", _strings(nested["ground_truth"], "reward_model.ground_truth")
    for name in TARGETS:
        if (value := parse_if_json(record.get(name))) is not None:
            return name, _strings(value, name)
    return "answer", []


def _strings(value: Any, name: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in values):
        raise BadRecord("wrong_type", f"{name} is neither a text, a number nor a list of them")
    return [str(one) for one in values]


def _keywords(record: Record) -> list[list[str]]:
    groups = parse_if_json(record.get("keywords"))
    if groups is None:
        return []
    if not isinstance(groups, list):
        raise BadRecord("wrong_type", "keywords is not a list of groups of words")
    lists = [[group] if isinstance(group, str) else group for group in groups]
    if not all(isinstance(g, list) and g and all(isinstance(w, str) and w.strip() for w in g) for g in lists):
        raise BadRecord("wrong_type", "keywords is not a list of groups of words")
    return lists


def final_answer(text: str) -> str:
    """The answer at the end of a worked one: after GSM8K's ``####``, in the last ``\\boxed{}``, else all of it."""
    if mark := _FINAL.search(text):
        return mark[1].strip()
    begin = text.rfind(_BOXED)
    if begin < 0:
        return text.strip()
    depth, at = 1, begin + len(_BOXED)
    while at < len(text) and depth:
        depth += (text[at] == "{") - (text[at] == "}")
        at += 1
    if depth:
        raise BadRecord("no_answer", "the box of the answer is not closed")
    return text[begin + len(_BOXED) : at - 1].strip()


def _lang(record: Record, text: str) -> str:
    own = str(record.get("lang") or "").lower()
    return own if own in ("zh", "en") else "zh" if _HAN.search(text) else "en"
