"""The chat format of others: conversations as a tokenizer's own chat template writes them, rendered as ``transformers``
does it.

What is learnt of the text is what ``{% generation %}`` encloses, where the template has it. Otherwise it is what an
answer adds to the prompt before it, up to the end of the turn. A template that writes earlier answers in another way
than the last (Qwen3 leaves out their reasoning) makes several sequences of a conversation, each as a model meets it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

from model.tokens.history import beginnings
from model.tokens.jinja import ANY_DAY, TemplateRefuses, render
from model.tokens.reply import parse_reply
from model.tokens.turns import TOOLS_INTRO, Message, turns

Structured = dict[str, Any]
"""A message as chat templates take it: role, content, and perhaps tool_calls, reasoning_content and the like."""
GUARD, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
"""Three of Unicode's noncharacters, which no text may hold: behind the first character of words that spell a special
token, and around what ``{% generation %}`` encloses."""
_MARKS = re.compile(f"[{GUARD}{OPEN}{CLOSE}]")
_GENERATION = re.compile(r"\{%-? *generation *-?%\}")
_TOOLS = re.compile(re.escape(TOOLS_INTRO) + r"\n<tools>\n(.*)\n</tools>\s*\Z", re.DOTALL)
_QUESTION, _ANSWER = Message(role="user", content="How deep?"), Message(role="assistant", content="Two metres.")
_CALLING = Message(
    role="assistant", content='<tool_call>\n{"name": "sounding", "arguments": {"pier": 1}}\n</tool_call>'
)
_RESULT = Message(role="tool", content="17 metres")
_TOOL = {"type": "function", "function": {"name": "sounding", "description": "d", "parameters": {"type": "object"}}}


class Text(NamedTuple):
    """A conversation as text, and where in it (characters, ends exclusive) stands what is learnt."""

    text: str
    spans: list[tuple[int, int]]


class Special(NamedTuple):
    """A special token: its id, and whether it swallows the blanks on its left and on its right."""

    id: int
    left: bool = False
    right: bool = False


class ForeignFormat:
    """A chat template, and what it may write: ``names`` (``bos_token`` and the like) and ``specials`` by their text.
    ``encode`` gives the ids of a piece without special tokens, ``decode`` the way back.

    Raises TemplateRefuses for a template that nothing can be trained in: one that does not take a question with its
    answer, whose answers do not continue their prompt, or do not close with a special token.
    """

    def __init__(
        self,
        template: str,
        names: dict[str, str],
        specials: dict[str, Special],
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> None:
        self.template, self.names, self.specials = template, names, specials
        self.encode, self.decode = encode, decode
        self.day: date = ANY_DAY
        self.marked = bool(_GENERATION.search(template))
        self._special = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
        self.tools = self.calls = self.reasoning = True
        self.tools = "sounding" in self._tried([_QUESTION, _ANSWER], [_TOOL])
        called = self._tried([_QUESTION, _CALLING, _RESULT, _ANSWER])
        self.calls = "sounding" in called and "17 metres" in called
        self.reasoning = "hm, hm" in self._tried(
            [_QUESTION, {**_ANSWER, "content": f"<think>\nhm, hm\n</think>\n\n{_ANSWER['content']}"}]
        )
        self.ends = self._ends()

    def _tried(self, messages: list[Message], tools: list[Any] | None = None) -> str:
        """What the template writes, or nothing where it refuses."""
        try:
            return self._write(self._structured(messages)[0], tools)
        except TemplateRefuses:
            return ""

    def _ends(self) -> list[int]:
        """Ids that close an answer: one in words first, then one with calls."""
        ends = [self._end(self.text([_QUESTION, _ANSWER]))]
        if self.calls:
            ends.append(self._end(self.text([_QUESTION, _CALLING])))
        return list(dict.fromkeys(ends))

    def _end(self, text: Text) -> int:
        begin, end = text.spans[-1] if text.spans else (0, 0)
        closing = self._closing(text.text[:end], begin)
        if closing is None:
            what = "what {% generation %} encloses" if self.marked else "an answer"
            raise TemplateRefuses(f"{what} does not close with a special token, and a model would never learn to stop")
        return self.specials[closing.group()].id

    def _closing(self, text: str, begin: int) -> re.Match[str] | None:
        """The special token that closes an answer, which begins there and reaches to the end of the text: of several at
        the end the first, where a model stops."""
        closing, end = None, len(text)
        for match in reversed(list(self._special.finditer(text, begin))):
            if text[match.end() : end].strip():
                break
            closing, end = match, match.start()
        return closing

    # Conversations to text

    def text(self, messages: Sequence[Message]) -> Text:
        """A conversation as one text. What is learnt are the answers that it holds as they are said."""
        text = self.written(messages)
        if self.marked:
            return self._marked(messages, text)
        own = [(begin, end) for begin, end, whole in self._answers(messages) if text.startswith(whole[:end])]
        return Text(text, own[::-1])

    def texts(self, messages: Sequence[Message]) -> list[Text]:
        """The texts in which each answer to learn stands as it is said: one, unless earlier answers are rewritten."""
        if self.marked:
            return [self.text(messages)]
        texts: list[Text] = []
        for begin, end, whole in self._answers(messages):
            if texts and texts[-1].text.startswith(whole[:end]):
                texts[-1].spans.insert(0, (begin, end))
            else:
                texts.append(Text(whole, [(begin, end)]))
        return texts[::-1]

    def _answers(self, messages: Sequence[Message]) -> Iterator[tuple[int, int, str]]:
        """Where each answer to learn begins and ends in the conversation up to it, and that; the last one first."""
        for i in range(len(messages) - 1, -1, -1):
            if messages[i]["role"] != "assistant" or not messages[i].get("learn", True):
                continue
            prompt, whole = self.written(messages[:i], ask=True), self.written(messages[: i + 1])
            if not whole.startswith(prompt):
                at = next(k for k, (a, b) in enumerate(zip(prompt, whole + "\0", strict=False)) if a != b)
                raise TemplateRefuses(
                    f"an answer does not continue its prompt: that ends in {prompt[-24:]!r}, and where the answer is"
                    f" known {whole[max(0, at - 8) : at + 16]!r} is written instead"
                )
            closing = self._closing(whole, len(prompt))
            yield len(prompt), closing.end() if closing else len(whole), whole

    def _marked(self, messages: Sequence[Message], text: str) -> Text:
        """A text without the marks of ``{% generation %}``, and what these enclose of answers to learn."""
        spans: list[tuple[int, int]] = []
        parts = re.split(f"[{OPEN}{CLOSE}]", text)
        at = 0
        for k, part in enumerate(parts):
            if k % 2:
                spans.append((at, at + len(part)))
            at += len(part)
        learn = [message.get("learn", True) for message in messages if message["role"] == "assistant"]
        if not all(learn):
            if len(learn) != len(spans):
                raise TemplateRefuses("it does not say which answer is which, and not all of them are to be learnt")
            spans = [span for span, wanted in zip(spans, learn, strict=True) if wanted]
        return Text("".join(parts), spans)

    def written(self, messages: Sequence[Message], *, ask: bool = False, thinking: bool = True) -> str:
        """A conversation as text, with ``ask`` how the next answer begins; with marks where ``{% generation %}`` is and
        nothing is asked. Raises TemplateRefuses also where it leaves out what a message says."""
        for message in messages:
            if mark := _MARKS.search(message["content"]):
                raise TemplateRefuses(f"a message holds U+{ord(mark.group()):04X}, which is no character")
        structured, tools = self._structured(messages)
        text = self._write(structured, tools, ask, thinking)
        for message in structured:
            if not _holds(text, message["content"].strip()):
                raise TemplateRefuses(f"it leaves out what the {message['role']} says")
        if any(str(_name(tool)) not in text for tool in tools or ()):
            raise TemplateRefuses("it leaves out a tool")
        last = structured[-1] if structured and not ask else {}
        if last.get("reasoning_content", "") not in text:
            raise TemplateRefuses("it leaves out the reasoning of the answer")
        return text

    def _write(
        self, messages: list[Structured], tools: list[Any] | None, ask: bool = False, thinking: bool = True
    ) -> str:
        values = {"messages": messages, "tools": tools, "add_generation_prompt": ask, **self.names}
        marks = (OPEN, CLOSE) if self.marked and not ask else ("", "")
        return render(self.template, values if thinking else {**values, "enable_thinking": False}, self.day, marks)

    def _structured(self, messages: Sequence[Message]) -> tuple[list[Structured], list[Any] | None]:
        """The messages with calls and reasoning in fields of their own, as far as the template shows these, and the
        tools. What it does not show stays in the contents."""
        lead = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
        listed = _TOOLS.search(lead)
        tools = _objects(listed[1]) if listed and self.tools else None
        if listed and tools:
            lead = lead[: listed.start()].rstrip()
            messages = [*([{**messages[0], "content": lead}] if lead else []), *messages[1:]]
        if not self.calls and any(message["role"] == "tool" for message in messages):
            messages = [{"role": turn.role, "content": turn.content} for turn in turns(messages)]
        structured: list[Structured] = []
        waiting: list[Structured] = []
        for message in messages:
            own: Structured = {"role": message["role"], "content": self._guarded(message["content"])}
            if message["role"] == "assistant":
                own = self._said(message["content"], sum(len(m.get("tool_calls", ())) for m in structured))
                waiting = list(own.get("tool_calls", ()))
            elif message["role"] == "tool" and waiting:
                call = waiting.pop(0)
                own |= {"name": call["function"]["name"], "tool_call_id": call["id"]}
            structured.append(own)
        return structured, tools

    def _said(self, content: str, calls_before: int) -> Structured:
        reply = parse_reply(content)
        own: Structured = {"role": "assistant", "content": content}
        if reply.tool_calls and self.calls:
            own["content"] = reply.content
            own["tool_calls"] = [
                {
                    "id": f"call{calls_before + k:05d}",  # nine letters and digits, as Mistral's template wants
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for k, call in enumerate(reply.tool_calls)
            ]
        if reply.reasoning and self.reasoning:
            if "tool_calls" not in own:
                own["content"] = content.partition("</think>")[2].lstrip()
            own["reasoning_content"] = own["thinking"] = self._guarded(reply.reasoning)
        elif reply.reasoning and "tool_calls" in own:
            own["content"] = f"<think>\n{reply.reasoning}\n</think>\n\n{reply.content}"
        return {**own, "content": self._guarded(own["content"])}

    def _guarded(self, text: str) -> str:
        """A text whose words are no special tokens, whatever they spell."""
        return self._special.sub(lambda match: match.group()[0] + GUARD + match.group()[1:], text)

    # Text to ids

    def ids(self, text: str) -> list[int]:
        """The ids of what the template wrote."""
        return [i for _, _, ids in self._pieces(text) for i in ids]

    def masked(self, text: Text) -> tuple[list[int], list[int]]:
        """Ids, and 1 for those that lie in a span; a token that begins before it is not learnt."""
        ids: list[int] = []
        mask: list[int] = []
        for start, piece, own in self._pieces(text.text):
            marks, stop = [0] * len(own), start + len(piece)
            for begin, end in text.spans:
                if begin < stop and end > start:
                    first = self._count(piece, own, begin - start)
                    last = self._count(piece, own, end - start)
                    marks[first:last] = [1] * (last - first)
            ids += own
            mask += marks
        return ids, mask

    def _count(self, piece: str, ids: list[int], characters: int) -> int:
        """How many tokens it takes to spell the first characters of a piece."""
        if characters <= 0 or characters >= len(piece):
            return len(ids) if characters > 0 else 0
        head = piece[:characters].replace(GUARD, "")
        own = self.encode(head)
        if ids[: len(own)] == own:
            return len(own)
        return next((k for k in range(len(ids)) if len(self.decode(ids[:k])) >= len(head)), len(ids))

    def _pieces(self, text: str) -> Iterator[tuple[int, str, list[int]]]:
        """The text cut at its special tokens: where a piece starts, the piece, its ids."""
        at, swallow = 0, False
        for match in [*self._special.finditer(text), None]:
            token = self.specials[match.group()] if match else None
            end = match.start() if match else len(text)
            if swallow:
                at += len(text[at:end]) - len(text[at:end].lstrip())
            piece = text[at:end].rstrip() if token and token.left else text[at:end]
            if piece:
                yield at, piece, self.encode(piece.replace(GUARD, ""))
            if match and token:
                yield end, match.group(), [token.id]
                at, swallow = match.end(), token.right

    # Lengths

    def fit(self, messages: Sequence[Message], room: int, ask: bool) -> tuple[list[Message], int] | None:
        """What stays of a conversation in ``room`` tokens, with ``ask`` those of the next answer's beginning among
        them, and how many messages go; found by halving."""
        head, starts = beginnings(messages)
        histories = [[*messages[:head], *messages[start:]] for start in starts]
        low, high = 0, len(starts)
        while low < high:
            middle = (low + high) // 2
            fits = len(self.ids(self._bare(histories[middle], ask))) <= room
            low, high = (low, middle) if fits else (middle + 1, high)
        return (histories[low], starts[low] - head) if low < len(starts) else None

    def answer_size(self, answer: str) -> int:
        """Tokens that an answer adds to its question."""
        talk = [_QUESTION, Message(role="assistant", content=answer)]
        return len(self.ids(self._bare(talk))) - len(self.ids(self._bare(talk[:1])))

    def _bare(self, messages: Sequence[Message], ask: bool = False) -> str:
        return re.sub(f"[{OPEN}{CLOSE}]", "", self.written(messages, ask=ask))


def _holds(text: str, said: str) -> bool:
    """Whether a text says something, as it is or as a JSON string."""
    return said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text


def _objects(lines: str) -> list[Any] | None:
    """JSON objects, one a line; None when one is none."""
    try:
        values = [json.loads(line) for line in lines.splitlines()]
    except (ValueError, RecursionError):
        return None
    return values if values and all(isinstance(value, dict) for value in values) else None


def _name(tool: Any) -> Any:
    return (tool.get("function") or tool).get("name", "") if isinstance(tool.get("function") or tool, dict) else ""
