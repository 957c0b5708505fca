"""Answers compared by a model behind an OpenAI-compatible endpoint, each prompt twice, in both orders.

What was said is kept in files named by the request, so that a run that is made again asks only what is new.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.config.base import Progress
from pipeline.config.sample import SampleSection
from pipeline.sampling.prompt import Prompt
from storage.errors import Failed
from storage.files import write_text

OPENAI = "https://api.openai.com/v1"
ASK = (
    "You compare answers to one question. Weigh whether they are true, whether they answer what was asked, and whether"
    " they are clear; length and style alone do not count. Say nothing but the letter of the best answer, a space, and"
    " the letter of the worst, for example: B D"
)
_LETTERS = re.compile(r"\b([A-Z])\b\W+([A-Z])\b")
_TRIES = 6


class JudgeFailed(Failed):
    """The judging endpoint does not answer, or refuses."""


def address(cfg: SampleSection) -> str:
    """The endpoint's base address."""
    return (cfg.judge_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")


def unanswered(cfg: SampleSection) -> list[str]:
    """Why the endpoint would not answer, as far as is known without asking."""
    if address(cfg) == OPENAI and not os.environ.get("OPENAI_API_KEY"):
        return ["openai needs a key in the variable OPENAI_API_KEY, or another endpoint in sample.judge_url"]
    return []


def compare_all(
    cfg: SampleSection,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    cache: Path,
    progress: Progress,
) -> list[list[float]]:
    """A score for each answer of each prompt: 1 for the best one, -1 for the worst, 0 for the others; all 0 where the
    two orders do not agree. Raises :class:`JudgeFailed`."""
    cache.mkdir(parents=True, exist_ok=True)
    done = 0

    def judge(i: int) -> list[float]:
        return compare(prompts[i], answers[i], lambda messages: _asked(cfg, messages, cache))

    found: list[list[float]] = []
    with ThreadPoolExecutor(cfg.judge_parallel) as pool:
        for scores in pool.map(judge, range(len(prompts))):
            found.append(scores)
            done += 1
            progress(done, len(prompts), "prompts judged")
    return found


def compare(prompt: Prompt, answers: Sequence[str], ask: Callable[[list[dict[str, str]]], str]) -> list[float]:
    """The scores of one prompt's answers; equal ones are shown once and score alike."""
    different = list(dict.fromkeys(answers))[:26]
    if len(different) < 2:
        return [0.0] * len(answers)
    forward, backward = (_verdict(prompt, order, ask) for order in (different, different[::-1]))
    if forward is None or forward != backward or forward[0] == forward[1]:
        return [0.0] * len(answers)
    return [1.0 if answer == forward[0] else -1.0 if answer == forward[1] else 0.0 for answer in answers]


def _verdict(
    prompt: Prompt, answers: Sequence[str], ask: Callable[[list[dict[str, str]]], str]
) -> tuple[str, str] | None:
    """The best and the worst answer as shown in this order; None where the reply does not say."""
    asked = "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt["messages"])
    shown = "\n\n".join(f"[{chr(65 + i)}] {answer}" for i, answer in enumerate(answers))
    user = f"Question\n========\n{asked}\n\nAnswers\n=======\n{shown}"
    found = _LETTERS.search(ask([{"role": "system", "content": ASK}, {"role": "user", "content": user}]))
    places = [ord(letter) - 65 for letter in found.groups()] if found else [len(answers)]
    return (answers[places[0]], answers[places[1]]) if max(places) < len(answers) else None


def _asked(cfg: SampleSection, messages: list[dict[str, str]], cache: Path) -> str:
    """The reply to ``messages``, from the cache if it was asked before."""
    request = {"model": cfg.judge_model, "messages": messages, "temperature": 0, "max_tokens": 16}
    body = json.dumps(request, ensure_ascii=False, sort_keys=True).encode()
    path = cache / f"{hashlib.sha256(body).hexdigest()[:40]}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["reply"]
    except (OSError, ValueError, KeyError):
        pass
    reply = _reply(_post(f"{address(cfg)}/chat/completions", body))
    write_text(path, json.dumps({"reply": reply}, ensure_ascii=False) + "\n")
    return reply


def _reply(answer: Any) -> str:
    try:
        return answer["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise JudgeFailed(f"sample.judge: the endpoint's answer has no message: {str(answer)[:200]}") from None


def _post(url: str, body: bytes) -> Any:
    """The JSON that the endpoint answers; busy ones (429, 5xx, no connection) are asked again, ever later."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    for attempt in range(_TRIES):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=120) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            if (error.code != 429 and error.code < 500) or attempt + 1 == _TRIES:
                said = error.read()[:300].decode(errors="replace")
                raise JudgeFailed(
                    f"sample.judge: {url} answered {error.code}: {said}; see sample.judge_url, sample.judge_model and"
                    " the variable OPENAI_API_KEY. What was judged so far is kept"
                ) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            if attempt + 1 == _TRIES:
                raise JudgeFailed(
                    f"sample.judge: {url} cannot be asked: {error}; see sample.judge_url. What was judged so far is"
                    " kept"
                ) from None
        time.sleep(min(20.0, 0.25 * 2**attempt))
    raise AssertionError("the last attempt returns or raises")
