"""Score several models side by side: ``python -m model.score --spec FILE``, one process.

The spec is JSON: ``models`` [{"name", "path"}] from base to last, ``reference`` (the model against whose likelihoods
the implicit reward of those after it is measured, or null), ``exams`` (directory with choices, answers and preferences
as JSON lines), ``tokens`` (a token dataset whose val split gives bits per byte, or null), ``out``, ``settings``
(max_new_tokens, batch, bits_tokens, seq_len, seed), ``device`` and ``dtype``. It writes ``scores.json``,
``answers.jsonl``, ``choices.jsonl`` and ``preferences.jsonl`` into ``out`` and the flat numbers to
``out/_run/result.json``. Every model, the base model too, is asked through the chat template.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model.generation.generate import generate
from model.generation.judge import bootstrap_mean, groups, is_right, share
from model.network.transformer import Transformer
from model.running.files import write_json, write_text
from model.tokens.chat import ChatTokenizer

Item = dict[str, Any]
Scored = tuple[list[int], int]  # ids, and the index of the first one whose likelihood is wanted
_LOGITS = 1 << 26  # most logits held at once: 256 MB


class Scorer:
    """One model and its tokenizer, answering and weighing texts."""

    def __init__(self, directory: str, device: str, dtype: str, batch: int, tick: Callable[[int], None]) -> None:
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        bf16 = dtype == "bf16" or (dtype == "auto" and self.device == "cuda")
        self.tokenizer = ChatTokenizer.load(directory)
        self.model = Transformer.from_dir(
            directory, dtype=torch.bfloat16 if bf16 else torch.float32, device=self.device
        ).eval()
        self.window = self.model.config.max_seq_len
        self.batch, self.tick = batch, tick

    def answers(self, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """Greedy answers. A question that leaves no room in the model's window is answered with nothing."""
        prompts = [self.tokenizer.prompt([{"role": "user", "content": question}]) for question in questions]
        order = sorted(
            (i for i in range(len(prompts)) if len(prompts[i]) < self.window), key=lambda i: (len(prompts[i]), i)
        )
        answers = [""] * len(prompts)
        stop = {self.tokenizer.eos_id, self.tokenizer.end_of_text_id}
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            said = generate(self.model, [prompts[i] for i in rows], stop=stop, max_new_tokens=max_new_tokens)
            for i, ids in zip(rows, said, strict=True):
                answers[i] = self.tokenizer.decode(ids).strip()
            self.tick(len(rows))
        return answers

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """For (question, answer): the sum of the answer's token log-probabilities in nats, and its UTF-8 bytes."""
        sequences: list[Scored] = []
        for question, answer in pairs:
            prompt = self.tokenizer.prompt([{"role": "user", "content": question}])
            ids = prompt + self.tokenizer.encode(answer.strip())
            cut = max(0, len(ids) - self.window)  # what does not fit is the oldest context
            sequences.append((ids[cut:], max(1, len(prompt) - cut)))
        sums = [float(values.sum()) for values in self.log_probabilities(sequences)]
        return [(total, len(answer.strip().encode())) for total, (_, answer) in zip(sums, pairs, strict=True)]

    @torch.no_grad()
    def log_probabilities(self, sequences: Sequence[Scored]) -> list[np.ndarray]:
        """Natural log-probabilities (float64) of each sequence's tokens from its start index on, given what precedes
        them."""
        values: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i][0]), i))
        for rows in self._batches(order, sequences):
            longest = max(len(sequences[i][0]) for i in rows)
            ids = torch.zeros((len(rows), longest), dtype=torch.long)
            for row, i in enumerate(rows):
                ids[row, : len(sequences[i][0])] = torch.tensor(sequences[i][0])
            hidden = self.model.hidden(
                ids.to(self.device)
            )  # padding is at the right, where causal attention never looks
            for row, i in enumerate(rows):
                tokens, start = sequences[i]
                states = hidden[row, start - 1 : len(tokens) - 1]
                logits = F.linear(states, self.model.head.to(states.dtype)).float()
                target = torch.tensor(tokens[start:], device=self.device)
                values[i] = -F.cross_entropy(logits, target, reduction="none").double().cpu().numpy()
            self.tick(len(rows))
        return values

    def _batches(self, order: list[int], sequences: Sequence[Scored]) -> Iterator[list[int]]:
        tokens = max(self.window, min(16_384, _LOGITS // self.model.config.vocab_size))
        rows: list[int] = []
        for i in order:  # lengths rise, so the next one is the longest of its batch
            if rows and ((len(rows) + 1) * len(sequences[i][0]) > tokens or len(rows) == self.batch):
                yield rows
                rows = []
            rows.append(i)
        if rows:
            yield rows


def token_bytes(tokenizer: ChatTokenizer) -> np.ndarray:
    """UTF-8 bytes that each id spells (int64 [vocab]); special tokens spell none. In byte-level BPE a character is a
    byte."""
    special = {i for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    sizes = np.zeros(max(tokenizer.backend.get_vocab().values()) + 1, dtype=np.int64)
    for token, i in tokenizer.backend.get_vocab().items():
        sizes[i] = 0 if i in special else len(token)
    return sizes


def held_out(tokens: Path, limit: int, window: int) -> list[list[int]]:
    """The validation split's documents, cut into pieces of ``window`` + 1 tokens that share their edge token, up to
    ``limit`` tokens."""
    meta = json.loads((tokens / "meta.json").read_text(encoding="utf-8"))
    offsets = np.load(tokens / "val.idx.npy")
    if offsets[-1] == 0:
        return []
    ids = np.memmap(tokens / "val.bin", dtype=meta["dtype"], mode="r")
    pieces: list[list[int]] = []
    taken = 0
    for begin, end in pairwise(offsets.tolist()):
        for at in range(begin, end - 1, window):
            if limit and taken >= limit:
                return pieces
            pieces.append(ids[at : min(at + window + 1, end)].tolist())
            taken += len(pieces[-1]) - 1
    return pieces


def bits_per_byte(scorer: Scorer, pieces: list[list[int]]) -> dict[str, float | int] | None:
    """Bits per UTF-8 byte of held-out text, independent of the tokenizer; a document's first token has no prediction
    and no bytes.

    None when there is no text.
    """
    if not pieces:
        return None
    values = scorer.log_probabilities([(piece, 1) for piece in pieces])
    size = token_bytes(scorer.tokenizer)
    spelled = sum(int(size[piece[1:]].sum()) for piece in pieces)
    nats = -sum(float(v.sum()) for v in values)
    return {"value": nats / math.log(2) / max(1, spelled), "bytes": spelled, "tokens": sum(len(v) for v in values)}


def score_model(
    scorer: Scorer, exams: dict[str, list[Item]], pieces: list[list[int]], settings: Item
) -> dict[str, Any]:
    """Everything one model is asked: raw answers and likelihoods, in the order of the items."""
    flat = [(item["question"], choice) for item in exams["choices"] for choice in item["choices"]]
    weights = iter(scorer.likelihoods(flat))
    options = [[next(weights) for _ in item["choices"]] for item in exams["choices"]]
    both = [(item["prompt"], item[side]) for item in exams["preferences"] for side in ("chosen", "rejected")]
    sides = scorer.likelihoods(both)
    return {
        "bits_per_byte": bits_per_byte(scorer, pieces),
        "answers": scorer.answers([item["question"] for item in exams["answers"]], settings["max_new_tokens"]),
        "picked": [max(range(len(row)), key=lambda i: row[i][0] / max(1, row[i][1])) for row in options],
        "preferences": [(sides[i], sides[i + 1]) for i in range(0, len(sides), 2)],
    }


def summarise(
    exams: dict[str, list[Item]], results: dict[str, dict[str, Any]], reference: str | None, seed: int
) -> dict[str, Any]:
    """Scores of every model from what it said: shares by set and language with 95 % intervals."""
    scores: dict[str, Any] = {}
    names = list(results)
    after = names[names.index(reference) + 1 :] if reference in results else []
    for name, own in results.items():
        row: dict[str, Any] = {"place": names.index(name), "bits_per_byte": own["bits_per_byte"], "answers": {}}
        picked = [choice == item["correct"] for choice, item in zip(own["picked"], exams["choices"], strict=True)]
        chances = [1 / len(item["choices"]) for item in exams["choices"]]
        row["choices"] = {
            name: share([picked[i] for i in of], float(np.mean([chances[i] for i in of])))
            for name, of in groups(exams["choices"]).items()
        }
        right = judge(exams["answers"], own["answers"])
        for kind in sorted({item["set"] for item in exams["answers"]}):
            of_kind = [i for i, item in enumerate(exams["answers"]) if item["set"] == kind]
            parts = groups([exams["answers"][i] for i in of_kind])
            row["answers"][kind] = {name: share([right[of_kind[i]] for i in of]) for name, of in parts.items()}
        row["preferences"] = _preferences(
            exams["preferences"], [(c[0] / max(1, c[1]), r[0] / max(1, r[1])) for c, r in own["preferences"]], seed
        )
        if name in after:
            base = results[str(reference)]["preferences"]
            gained = [(c[0] - bc[0], r[0] - br[0]) for (c, r), (bc, br) in zip(own["preferences"], base, strict=True)]
            row["against_reference"] = _preferences(exams["preferences"], gained, seed)
        scores[name] = row
    return scores


def judge(items: Sequence[Item], answers: Sequence[str]) -> list[bool]:
    """Which answers state the right fact."""
    return [is_right(answer, item["keywords"], item["answer"]) for item, answer in zip(items, answers, strict=True)]


def _preferences(items: list[Item], values: list[tuple[float, float]], seed: int) -> dict[str, Any]:
    """How often the chosen answer's value exceeds the rejected one's, and by how much in the mean."""
    rows: dict[str, Any] = {}
    for name, of in groups(items).items():
        margins = [values[i][0] - values[i][1] for i in of]
        low, high = bootstrap_mean(margins, seed)
        accuracy = share([margin > 0 for margin in margins], 0.5)
        rows[name] = {**accuracy, "margin": float(np.mean(margins)), "margin_low": low, "margin_high": high}
    return rows


def flat_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """Scores under flat names, ``<model>.<score>[.<language or set>]``, for a tracking server."""
    flat: dict[str, float] = {}
    for name, row in scores.items():
        if row["bits_per_byte"]:
            flat[f"{name}.bits_per_byte"] = row["bits_per_byte"]["value"]
        tables = {
            "choices": row["choices"],
            "preferences": row["preferences"],
            "against_reference": row.get("against_reference", {}),
        }
        tables |= {f"answers_{kind}": table for kind, table in row["answers"].items()}
        for score, table in tables.items():
            for lang, cell in table.items():
                suffix = "" if lang == "all" else f".{lang}"
                flat[f"{name}.{score}{suffix}"] = cell["share"]
                if "margin" in cell:
                    flat[f"{name}.{score}_margin{suffix}"] = cell["margin"]
    return flat


def run(spec: dict[str, Any]) -> dict[str, float]:
    """Score all models of a spec and write the files; returns the flat metrics."""
    out, settings = Path(spec["out"]), spec["settings"]
    exams = {kind: _read(Path(spec["exams"]) / f"{kind}.jsonl") for kind in ("choices", "answers", "preferences")}
    progress = _Progress(out / "_run" / "metrics.jsonl")
    results: dict[str, dict[str, Any]] = {}
    begun = time.monotonic()
    for name, directory in ((model["name"], model["path"]) for model in spec["models"]):
        scorer = Scorer(directory, spec["device"], spec["dtype"], settings["batch"], progress.tick)
        window = settings["seq_len"] or min(1024, scorer.window)
        pieces = (
            held_out(Path(spec["tokens"]), settings["bits_tokens"], min(window, scorer.window))
            if spec.get("tokens")
            else []
        )
        items = (
            len(exams["answers"])
            + sum(len(i["choices"]) for i in exams["choices"])
            + 2 * len(exams["preferences"])
            + len(pieces)
        )
        progress.expect(name, items, len(spec["models"]))
        results[name] = score_model(scorer, exams, pieces, settings)
    scores = summarise(exams, results, spec.get("reference"), settings["seed"])
    _write_files(out, exams, results, scores)
    metrics = flat_metrics(scores)
    write_json(out / "_run" / "result.json", {**metrics, "seconds": time.monotonic() - begun}, finite=True)
    return metrics


class _Progress:
    """Lines for whoever watches: items done of all, about once a second."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.done, self.total, self.model, self.last = path, 0, 0, "", 0.0
        self.path.write_text("")

    def expect(self, model: str, items: int, models: int) -> None:
        self.model, self.total = model, self.total or items * models

    def tick(self, items: int) -> None:
        self.done += items
        if time.monotonic() - self.last > 1 or self.done == self.total:
            self.last = time.monotonic()
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"step": self.done, "total_steps": self.total, "model": self.model, "time": time.time()})
                    + "\n"
                )


def _write_files(
    out: Path, exams: dict[str, list[Item]], results: dict[str, dict[str, Any]], scores: dict[str, Any]
) -> None:
    right = {name: judge(exams["answers"], own["answers"]) for name, own in results.items()}
    answers = [
        {
            **item,
            "said": {n: own["answers"][i] for n, own in results.items()},
            "right": {n: right[n][i] for n in results},
        }
        for i, item in enumerate(exams["answers"])
    ]
    choices = [
        {**item, "picked": {n: own["picked"][i] for n, own in results.items()}}
        for i, item in enumerate(exams["choices"])
    ]
    preferences = [
        {
            **item,
            "log_likelihood": {
                n: {"chosen": own["preferences"][i][0][0], "rejected": own["preferences"][i][1][0]}
                for n, own in results.items()
            },
        }
        for i, item in enumerate(exams["preferences"])
    ]
    for name, rows in (("answers", answers), ("choices", choices), ("preferences", preferences)):
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        write_text(out / f"{name}.jsonl", "".join(lines))
    write_json(out / "scores.json", scores, finite=True)


def _read(path: Path) -> list[Item]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="\n") as lines:  # strings may hold U+2028, which splitlines would cut at
        return [json.loads(line) for line in lines]


def main() -> None:
    """The worker's command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="JSON file")
    run(json.loads(Path(parser.parse_args().spec).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
