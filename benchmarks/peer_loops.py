"""Other projects' training loops, each run as it ships, one a process: ``python benchmarks/peer_loops.py NAME SPEC.json``.

The spec is written by ``train_peers.py``; the last line printed is JSON with rates. Nothing of the peers is copied here: MiniMind
is imported from its checkout, TRL from the environment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

WARM_UP = 3
"""Steps that are not counted, as in our own meter."""


def minimind(spec: dict[str, Any]) -> dict[str, float]:
    """``trainer/train_pretrain.py``'s ``train_epoch`` over its own dataset class: fp32 on a CPU, every document padded to ``seq_len``."""
    sys.path.insert(0, spec["minimind"])
    import torch
    from torch.utils.data import DataLoader
    from trainer import train_pretrain as theirs
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    config = theirs.MiniMindConfig(hidden_size=spec["dim"], num_hidden_layers=spec["layers"], num_attention_heads=spec["heads"],
                                   num_key_value_heads=spec["kv_heads"], intermediate_size=spec["ffn"])
    tokenizer = AutoTokenizer.from_pretrained(Path(spec["minimind"]) / "model")
    data = theirs.PretrainDataset(spec["documents"], tokenizer, max_length=spec["seq_len"])
    generator = torch.Generator().manual_seed(0)
    theirs.args = argparse.Namespace(device="cpu", epochs=1, learning_rate=5e-4, accumulation_steps=spec["accumulate"], grad_clip=1.0,
                                     log_interval=1 << 30, save_interval=1 << 30)
    theirs.model = theirs.init_model(config, "none", str(Path(spec["minimind"]) / "model"), device="cpu")[0]
    theirs.optimizer = torch.optim.AdamW(theirs.model.parameters(), lr=5e-4)
    theirs.scaler, theirs.autocast_ctx, theirs.lm_config = torch.amp.GradScaler("cpu", enabled=False), nullcontext(), config
    marks: list[tuple[float, int, int]] = []

    def timed():
        loader = iter(DataLoader(data, batch_size=spec["rows"], shuffle=True, generator=generator, num_workers=0))
        for _ in range(spec["updates"] * spec["accumulate"]):
            ids, labels = next(loader)
            marks.append((time.perf_counter(), ids.numel(), int((labels != -100).sum())))
            yield ids, labels
        marks.append((time.perf_counter(), 0, 0))

    theirs.train_epoch(0, timed(), 1 << 30)
    skip = min(WARM_UP * spec["accumulate"], len(marks) - 2)
    seconds = marks[-1][0] - marks[skip][0]
    slots, real = (sum(mark[i] for mark in marks[skip:]) / seconds for i in (1, 2))
    return {"slots": slots, "real": real, "parameters": sum(p.numel() for p in theirs.model.parameters())}


def _qwen3(spec: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=spec["vocab_size"], hidden_size=spec["dim"], intermediate_size=spec["ffn"], num_hidden_layers=spec["layers"], tie_word_embeddings=True,
        num_attention_heads=spec["heads"], num_key_value_heads=spec["kv_heads"], head_dim=spec["dim"] // spec["heads"], max_position_embeddings=2048))


def _clock() -> tuple[Any, list[float]]:
    """A callback that notes when steps end, and its notes."""
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    return Clock(), marks


def _options(spec: dict[str, Any]) -> dict[str, Any]:
    return {"output_dir": spec["out"], "per_device_train_batch_size": spec["rows"], "max_steps": spec["updates"], "learning_rate": 5e-4, "report_to": [],
            "logging_steps": 1 << 20, "save_strategy": "no", "max_length": spec["seq_len"], "use_cpu": True, "bf16": spec["bf16"],
            "gradient_checkpointing": False, "disable_tqdm": True, "seed": 0, "dataset_num_proc": None}


def trl_sft(spec: dict[str, Any]) -> dict[str, float]:
    """``SFTTrainer`` with dynamic padding, its default; samples a second over whole conversations."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(spec["chats"]).read_text(encoding="utf-8").splitlines()]
    clock, marks = _clock()
    trainer = SFTTrainer(model=_qwen3(spec), args=SFTConfig(**_options(spec)), train_dataset=Dataset.from_list([{"messages": r["messages"]} for r in rows]),
                         processing_class=AutoTokenizer.from_pretrained(spec["tokenizer"]), callbacks=[clock])
    trainer.train()
    return {"samples": spec["rows"] / _median(marks)}


def trl_dpo(spec: dict[str, Any]) -> dict[str, float]:
    """``DPOTrainer`` with its reference pass in every step; pairs a second."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    _qwen3(spec).save_pretrained(start := Path(spec["out"]) / "start")  # the reference model is read from a directory
    rows = [json.loads(line) for line in Path(spec["pairs"]).read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": r["prompt"], "chosen": [{"role": "assistant", "content": r["chosen"]}], "rejected": [{"role": "assistant", "content": r["rejected"]}]}
             for r in rows]
    clock, marks = _clock()
    trainer = DPOTrainer(model=str(start), args=DPOConfig(**_options(spec)), train_dataset=Dataset.from_list(pairs),
                         processing_class=AutoTokenizer.from_pretrained(spec["tokenizer"]), callbacks=[clock])
    trainer.train()
    return {"samples": spec["rows"] / _median(marks)}


def _median(marks: list[float]) -> float:
    steps = [b - a for a, b in pairwise(marks)]
    return statistics.median(steps[WARM_UP:] or steps)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    found = {"minimind": minimind, "trl_sft": trl_sft, "trl_dpo": trl_dpo}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
    print("\n" + json.dumps(found))
