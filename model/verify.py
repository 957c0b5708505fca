"""Does stock ``transformers`` compute the same from a model directory? ``python -m model.verify --spec FILE``, one
process.

The spec is JSON: ``model`` (directory), ``prompts`` (list of user messages), ``out``. Compared in fp32: the ids of the
chat template, all logits, and the greedy answer. The finding goes to ``out/_run/result.json``; where it differs, the
exit code is 1 and the last line says where. Without ``transformers`` nothing is compared and the result says so.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from model.generation.generator import generate
from model.network.transformer import Transformer
from model.running.command import WorkerSpec, read_spec
from model.running.files import write_json
from model.tokens.chat import ChatTokenizer
from model.tokens.turns import Message

TOLERANCE = 2e-3
"""Largest difference of two logits, relative to their spread: fp32 sums in another order, through tens of layers."""


@torch.no_grad()
def compare(directory: str | Path, prompts: list[str], new_tokens: int = 24) -> dict[str, Any]:
    """``{"logit_difference", "greedy_equal", "template_equal"}`` over all prompts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own, chat = Transformer.from_dir(directory).eval(), ChatTokenizer.load(directory).today(date.today())
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    agreement: dict[str, Any] = {"logit_difference": 0.0, "greedy_equal": True, "template_equal": True}
    for prompt in prompts:
        messages: list[Message] = [{"role": "user", "content": prompt}]
        ids = chat.prompt(messages)
        batch = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        agreement["template_equal"] &= batch["input_ids"][0].tolist() == ids
        a, b = own(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
        difference = float((a - b).abs().max() / b.std().clamp(min=1e-6))
        agreement["logit_difference"] = max(
            agreement["logit_difference"], difference if math.isfinite(difference) else sys.float_info.max
        )
        stop = chat.ends
        said = generate(own, [ids], stop=stop, max_new_tokens=new_tokens)[0]
        full = theirs.generate(  # pyright: ignore[reportAttributeAccessIssue] - transformers' types deny what its models can
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=sorted(stop),
            pad_token_id=chat.pad_id,
        )[0, len(ids) :].tolist()
        agreement["greedy_equal"] &= said == [token for token in full if token not in stop]
    return agreement


def run(spec: WorkerSpec) -> str:
    """Compare, write the result; what differs, or nothing."""
    if importlib.util.find_spec("transformers") is None:
        result: dict[str, Any] = {"compared": 0, "why": "transformers is not installed"}
        problem = ""
    else:
        agreement = compare(spec["model"], spec["prompts"])
        result = {"compared": len(spec["prompts"]), **agreement}
        wrong = [name for name in ("template_equal", "greedy_equal") if not agreement[name]]
        wrong += ["logits"] if agreement["logit_difference"] > TOLERANCE else []
        largest = f"largest logit difference {agreement['logit_difference']:.2g} of their spread"
        problem = f"{spec['model']}: transformers differs in {', '.join(wrong)} ({largest})" if wrong else ""
    write_json(Path(spec["out"]) / "_run" / "result.json", result)
    return problem


def main() -> int:
    """The worker's command line."""
    problem = run(read_spec(__doc__))
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
