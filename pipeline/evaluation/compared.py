"""Preference items whose prompt or answers are conversations.

Turns come in any dialect (:mod:`pipeline.formats.messages`). The prompt is ``prompt`` or ``question``, a list of turns
of another name, or what both conversations begin with; ``system`` and ``tools`` are part of it.
"""

from __future__ import annotations

from pipeline.evaluation.gold import Fields, Item, NotAnItem, parsed
from pipeline.formats.bad import BadRecord
from pipeline.formats.compared import answer_of, checked_pair, plain, prompt_and_answers, turns_of
from pipeline.formats.fields import BESIDE_PAIRS, BESIDE_TURNS, refuse_unused
from pipeline.formats.messages import fold

_PROMPTS = ("messages", "conversations", "conversation", "prompt", "question", "query")
_LEADS, _TOOLS = ("system", "system_prompt", "system_message"), ("tools", "functions")
_USED = frozenset(("chosen", "rejected", "margin", "lang", "set", *_LEADS, *_TOOLS))


def compared(fields: Fields) -> Item:
    """The pair, with ``messages`` for all of its prompt where that is more than a question. Raises NotAnItem."""
    name = next((name for name in _PROMPTS if fields.get(name)), None)
    try:
        chosen, rejected = (turns_of(answer_of(fields[side])) for side in ("chosen", "rejected"))
        given = parsed(fields[name]) if name else None
        before = [{"role": "user", "content": given}] if isinstance(given, str) else given
        prompt, chosen, rejected = prompt_and_answers(before, chosen, rejected, ())
        system, tools = (next((fields[n] for n in names if fields.get(n)), None) for names in (_LEADS, _TOOLS))
        messages = [plain(message) for message in fold(prompt, system=system, tools=tools)]
        said = "\n".join([*(message["content"] for message in messages), chosen, rejected])
        refuse_unused(fields, _USED | ({name} if name else set()), said, also=BESIDE_PAIRS | BESIDE_TURNS)
        pair = checked_pair(messages, chosen, rejected)
    except BadRecord as error:
        raise NotAnItem(str(error)) from None
    item = {"prompt": messages[-1]["content"], "chosen": pair["chosen"], "rejected": pair["rejected"]}
    return item if len(messages) == 1 else {**item, "messages": messages}
