"""What the forms of a model cost against the model itself: ``python -m model.measure --spec FILE``, one process.

The spec is JSON: ``model`` (directory, the original in fp32), ``forms`` [{"name", "path", "bytes", "why"}] (a model
directory, or a GGUF file, which llama.cpp computes where it is installed; ``why`` a form is not measured, or empty),
``tokens`` (a token dataset whose val split is read, or null), ``text`` (a UTF-8 file in its place, or null), ``exams``
(directory that the evaluation leaves, or null), ``out`` and ``settings`` (bits_tokens, kl_tokens, exam_items, seq_len,
speed_tokens, max_new_tokens, batch). It writes ``costs.json`` and the flat
numbers to ``out/_run/result.json``. On the CPU, one form after the other beside the original.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.generation.generator import generate
from model.generation.heldout import HeldOut, bits_per_byte, held_out
from model.generation.judge import Item, right
from model.generation.measures import HEADLINE, credits
from model.generation.scorer import Scorer
from model.generation.standard import ask
from model.generation.summary import picked
from model.llamacpp.library import INSTALL, installed
from model.llamacpp.scorer import GgufScorer
from model.running.command import WorkerSpec, read_spec
from model.running.files import write_json
from model.score import asked
from model.specs.costs import Cost, Share


def text_windows(text: str, scorer: Scorer, window: int, limit: int) -> HeldOut:
    """A text as pieces of ``window`` + 1 tokens that share their edge token, up to ``limit`` tokens (0: all)."""
    tokenizer = scorer.tokenizer
    ids = [tokenizer.end_of_text_id, *tokenizer.encode(text)]
    cut = ids[: limit + 1] if limit else ids
    size = len(text.encode()) if len(cut) == len(ids) else len(tokenizer.decode(cut[1:]).encode())
    pieces = [cut[at : at + window + 1] for at in range(0, len(cut) - 1, window)]
    return HeldOut(pieces, [size * (len(piece) - 1) / (len(cut) - 1) for piece in pieces])


class Measure:
    """The original with its answers, against which forms are measured."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.settings, self.model = spec["settings"], spec["model"]
        self.original = Scorer(self.model, "cpu", "fp32", self.settings["batch"], lambda _: None)
        window = min(self.settings["seq_len"] or 1024, self.original.window)
        self.text = HeldOut([])
        if spec.get("tokens"):
            self.text = held_out(Path(spec["tokens"]), self.settings["bits_tokens"], window)
        elif spec.get("text"):
            whole = Path(spec["text"]).read_text(encoding="utf-8")
            self.text = text_windows(whole, self.original, window, self.settings["bits_tokens"])
        folder = Path(spec["exams"]) if spec.get("exams") else None
        self.questions = [i for i in _read(folder, "answers") if i.get("set") != "training"]
        self.choices = _read(folder, "choices")
        self.standard = standard_items(folder, self.settings["exam_items"])
        self.pieces = self._few(self.settings["kl_tokens"])
        self.own = self._right(self.original)

    def cost(self, scorer: Scorer, size: int) -> Cost:
        """What a form costs; ``size`` in bytes."""
        cost: Cost = {"bytes": size}
        if bits := bits_per_byte(scorer, self.text):
            cost["bits_per_byte"] = bits["value"]
        if self.pieces and scorer is not self.original:
            cost["kl"], cost["same_top"] = self._divergence(scorer)
        cost["tokens_per_second"] = self._speed(scorer)
        rights = self.own if scorer is self.original else self._right(scorer)
        cost["exams"] = {name: _share(rights[name], self.own[name], scorer is self.original) for name in rights}
        return cost

    def _few(self, limit: int) -> list[list[int]]:
        pieces: list[list[int]] = []
        for piece in self.text.pieces:
            if limit and sum(map(len, pieces)) >= limit:
                break
            pieces.append(piece)
        return pieces

    def _divergence(self, scorer: Scorer) -> tuple[float, float]:
        nats, same, count = 0.0, 0, 0
        for piece in self.pieces:
            ids = piece[:-1]
            own, other = (_log_softmax(one, ids) for one in (self.original, scorer))  # [T, vocab]
            nats += float((own.exp() * (own - other)).sum())
            same += int((own.argmax(-1) == other.argmax(-1)).sum())
            count += len(ids)
        return nats / count, same / count

    def _speed(self, scorer: Scorer) -> float:
        """Tokens a second of one greedy stream after a short prompt; the better of two, the first of which warms up."""
        prompt = scorer.tokenizer.prompt([{"role": "user", "content": "What is a token? 什么是词元？"}])
        count = min(self.settings["speed_tokens"], scorer.window - len(prompt))
        if count < 1:
            return 0.0
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            if isinstance(scorer, GgufScorer):
                scorer.llama.greedy(prompt, stop=(), max_new_tokens=count)
            else:
                generate(scorer.model, [prompt], stop=(), max_new_tokens=count)
            seconds.append(time.perf_counter() - begun)
        return count / min(seconds)

    def _right(self, scorer: Scorer) -> dict[str, list[float]]:
        """What each item of each set counts (0 to 1), in their order; nothing for one that does not fit the window."""
        rights: dict[str, list[float]] = {}
        said = scorer.answers([asked(item) or "" for item in self.questions], self.settings["max_new_tokens"])
        for item, answer in zip(self.questions, said, strict=True):
            if answer is not None:
                rights.setdefault(item["set"], []).append(float(right(item, answer)))
        texts = [(asked(item), choice) for item in self.choices for choice in item["choices"]]
        weights = iter(scorer.likelihoods(texts))
        for item in self.choices:
            row = [next(weights) for _ in item["choices"]]
            if None not in row:
                rights.setdefault("choices", []).append(picked(item, [w for w in row if w])[1])
        for item, own in zip(self.standard, ask(scorer, self.standard), strict=True):
            if not own["why"]:
                rights.setdefault(item["set"], []).append(credits(item, own)[HEADLINE[item["form"]]])
        return rights


def standard_items(folder: Path | None, limit: int) -> list[Item]:
    """Choice questions, evenly spread, of each exam that was asked as the harness does, about ``limit`` of each (0:
    all); generated answers are left out. Raises ValueError when an evaluation's questions are not there any more."""
    known = [item for item in _read(folder, "standard") if item["choices"]]
    items = _read(folder / "_run" / "exams", "standard") if folder and known else []  # those have their contexts
    if len(items) < len(known):
        raise ValueError(f"{folder}: its exams' questions are gone; `pipeline run … --refresh evaluate` asks again")
    sets: dict[str, list[Item]] = {}
    for item in items:
        if item["choices"]:
            sets.setdefault(item["set"], []).append(item)
    steps = {name: max(1, round(len(own) / limit)) if limit else 1 for name, own in sets.items()}
    return [item for name, own in sets.items() for item in own[:: steps[name]]]


def _share(own: Sequence[float], original: Sequence[float], same: bool) -> Share:
    share: Share = {"n": len(own), "share": float(np.mean(own))}
    if same or len(own) != len(original):
        return share
    gained = np.asarray(own) - np.asarray(original)
    middle = float(gained.mean())
    spread = 1.96 * float(gained.std(ddof=1)) / math.sqrt(len(own)) if len(own) > 1 else 1.0
    return {**share, "difference": middle, "low": middle - spread, "high": middle + spread}


@torch.no_grad()
def _log_softmax(scorer: Scorer, ids: list[int]) -> Tensor:
    if isinstance(scorer, GgufScorer):
        return torch.from_numpy(scorer.llama.logits(ids)).log_softmax(-1)
    hidden = scorer.model.hidden(torch.tensor([ids]))[0]
    return F.linear(hidden, scorer.model.head.to(hidden.dtype)).float().log_softmax(-1)


def _read(folder: Path | None, kind: str) -> list[Item]:
    path = folder / f"{kind}.jsonl" if folder else None
    if path is None or not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def flat(costs: dict[str, Cost]) -> dict[str, float]:
    """Costs under flat names, ``<form>.<what>``, for a tracking server."""
    numbers: dict[str, float] = {}
    for name, cost in costs.items():
        numbers |= {f"{name}.{what}": value for what, value in cost.items() if isinstance(value, (int, float))}
        for exam, share in cost.get("exams", {}).items():
            numbers[f"{name}.{exam}"] = share["share"]
            if "difference" in share:
                numbers[f"{name}.{exam}.difference"] = share["difference"]
    return numbers


def run(spec: WorkerSpec) -> dict[str, float]:
    """Measure the original and all forms; writes the files and returns the flat numbers."""
    out, measure = Path(spec["out"]), Measure(spec)
    size = sum(path.stat().st_size for path in Path(spec["model"]).glob("model*.safetensors"))
    costs: dict[str, Cost] = {"fp32": measure.cost(measure.original, size)}
    progress = out / "_run" / "metrics.jsonl"
    progress.parent.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    for i, form in enumerate(spec["forms"], 1):
        gguf = form["path"].endswith(".gguf")
        if form.get("why") or (gguf and not installed()):
            costs[form["name"]] = {"bytes": form["bytes"], "why": form.get("why") or f"llama.cpp: {INSTALL}"}
            continue
        scorer = (
            GgufScorer(form["path"], spec["model"], threads)
            if gguf
            else Scorer(form["path"], "cpu", "fp32", spec["settings"]["batch"], lambda _: None)
        )
        costs[form["name"]] = measure.cost(scorer, form["bytes"])
        if isinstance(scorer, GgufScorer):
            scorer.llama.close()
        with open(progress, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": i, "total_steps": len(spec["forms"]), "time": time.time()}) + "\n")
    write_json(out / "costs.json", costs, indent=2, finite=True)
    numbers = flat(costs)
    write_json(out / "_run" / "result.json", numbers, finite=True)
    return numbers


def main() -> None:
    """The worker's command line."""
    run(read_spec(__doc__))


if __name__ == "__main__":
    main()
