"""Answers that have to be JSON of a schema, by llguidance (an optional package of compiled code): before each token it
says which ones can still lead to such a text."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from model.tokens.chat import ChatTokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

INSTALL = "pip install 'full-pipeline[json]' (the package llguidance)"
ANY_OBJECT: dict[str, Any] = {"type": "object"}
_FORM: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python's json writes it. Free white space would let a small model write blanks until its answer is full."""


def installed() -> bool:
    """Whether answers can be held to a grammar here."""
    return importlib.util.find_spec("llguidance") is not None


class Grammars:
    """Grammars over the tokens of one model, of which ``vocab`` have logits and ``ends`` end an answer."""

    def __init__(self, tokenizer: ChatTokenizer, vocab: int, ends: Collection[int]) -> None:
        from llguidance import LLTokenizer

        self._ends = sorted(ends)
        self._tokens = LLTokenizer(tokenizer.backend.to_str(), n_vocab=vocab, eos_token=self._ends)

    def json(self, schema: dict[str, Any]) -> JsonRule:
        """The beginning of a JSON text of a schema. Raises ValueError for one that is no schema, or uses what cannot be
        held to."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, LLMatcher.grammar_from_json_schema(schema, overrides=_FORM))
        if matcher.is_error():
            raise ValueError(matcher.get_error().split("\n")[0])
        return JsonRule(matcher, self._ends)


class JsonRule:
    """One answer (see :class:`model.generation.rule.Rule`)."""

    def __init__(self, matcher: Any, ends: list[int]) -> None:
        self._matcher, self._ends = matcher, ends

    def copy(self) -> JsonRule:
        """The same for another answer."""
        return JsonRule(self._matcher.deep_copy(), self._ends)

    def allowed(self) -> np.ndarray:
        """Which tokens may come next, bool [vocab]; where the grammar knows no way on, those that end the answer."""
        may = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) > 0
        if self._matcher.is_error() or not may.any():
            may = np.zeros_like(may)
            may[self._ends] = True
        return may

    def take(self, token: int) -> None:
        """This one came."""
        self._matcher.consume_token(token)
