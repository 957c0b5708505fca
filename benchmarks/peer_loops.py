"""Other projects' training loops, each run as it ships, one a process: ``python benchmarks/peer_loops.py NAME
SPEC.json``.

The spec is written by ``train_peers.py``; the last line printed is JSON with rates. Nothing of the peers is copied
here: MiniMind and GPT_teacher are imported from their checkouts, TRL and transformers from the environment.
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
"""Fine-tuning steps that are not counted; in pretraining, whose updates are long, it is one update."""


def minimind(spec: dict[str, Any]) -> dict[str, float]:
    """``trainer/train_pretrain.py``'s ``train_epoch`` over its own dataset class: fp32 on a CPU, every document padded
    to ``seq_len``."""
    sys.path.insert(0, spec["minimind"])
    import torch
    from torch.utils.data import DataLoader
    from trainer import train_pretrain as theirs
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    config = theirs.MiniMindConfig(
        hidden_size=spec["dim"],
        num_hidden_layers=spec["layers"],
        num_attention_heads=spec["heads"],
        num_key_value_heads=spec["kv_heads"],
        intermediate_size=spec["ffn"],
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(spec["minimind"]) / "model")
    data = theirs.PretrainDataset(spec["documents"], tokenizer, max_length=spec["seq_len"])
    generator = torch.Generator().manual_seed(0)
    theirs.args = argparse.Namespace(
        device="cpu",
        epochs=1,
        learning_rate=5e-4,
        accumulation_steps=spec["accumulate"],
        grad_clip=1.0,
        log_interval=1 << 30,
        save_interval=1 << 30,
    )
    theirs.model = theirs.init_model(config, "none", str(Path(spec["minimind"]) / "model"), device="cpu")[0]
    theirs.optimizer = torch.optim.AdamW(theirs.model.parameters(), lr=5e-4)
    theirs.scaler, theirs.autocast_ctx, theirs.lm_config = (
        torch.amp.GradScaler("cpu", enabled=False),
        nullcontext(),
        config,
    )
    marks: list[tuple[float, int, int]] = []

    def timed():
        loader = iter(DataLoader(data, batch_size=spec["rows"], shuffle=True, generator=generator, num_workers=0))
        for _ in range(spec["updates"] * spec["accumulate"]):
            ids, labels = next(loader)
            marks.append((time.perf_counter(), ids.numel(), int((labels != -100).sum())))
            yield ids, labels
        marks.append((time.perf_counter(), 0, 0))

    theirs.train_epoch(0, timed(), 1 << 30)
    return _rates(marks, spec["accumulate"])


def _rates(marks: list[tuple[float, int, int]], skip: int) -> dict[str, float]:
    """Slots and real tokens a second from (when a micro-batch began, its slots, its tokens), the first ``skip`` left
    out; the last mark ends."""
    skip = min(skip, len(marks) - 2)
    seconds = marks[-1][0] - marks[skip][0]
    slots, real = (sum(mark[i] for mark in marks[skip:-1]) / seconds for i in (1, 2))
    return {"slots": slots, "real": real}


def teacher(spec: dict[str, Any]) -> dict[str, float]:
    """GPT_teacher's ``train.py`` with its own configuration, tokenizer and questions; real tokens are those that are
    not padding."""
    import yaml

    root, out = Path(spec["teacher"]), Path(spec["out"])
    sys.path.insert(0, str(root))
    from train import train as theirs

    config = yaml.safe_load((root / "train" / "config.yml").read_text())
    config["data"] = {key: str(root / value) for key, value in config["data"].items()}
    config["tokenizer"]["path"] = str(root / config["tokenizer"]["path"])
    config["training"] |= {"save_dir": str(out / "checkpoints"), "eval_interval": 1 << 30}
    (out / "config.yml").write_text(yaml.safe_dump(config))
    collate, marks = theirs.collate, []

    def timed(batch: Any, seq_len: int, pad_id: int) -> Any:
        marks.append((time.perf_counter(), len(batch) * seq_len, sum(len(ids) for ids, _ in batch)))
        return collate(batch, seq_len, pad_id)

    theirs.collate, theirs.num_threads = timed, lambda: 1
    theirs.train("cpu", config_path=str(out / "config.yml"), max_steps_override=spec["updates"], acceptance=False)
    each = config["training"]["batch_size"] // config["training"]["micro_batch"]
    return _rates(marks, WARM_UP * each)  # from one micro-batch's start to the last one's


def qwen3(spec: dict[str, Any]) -> dict[str, float]:
    """A plain loop over transformers' Qwen3 with AdamW and clipping: windows of the same tokens, no padding."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    model, tokens = _qwen3(spec), np.memmap(spec["text"], np.uint16, "r")
    run = torch.compile(model, dynamic=False) if spec["compile"] else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    rows, length, marks = spec["rows"], spec["seq_len"], []
    for step in range(spec["updates"] * spec["accumulate"]):
        begin = step * rows * length
        ids = torch.from_numpy(tokens[begin : begin + rows * length].astype(np.int64)).view(rows, length)
        marks.append((time.perf_counter(), ids.numel(), ids.numel()))
        with torch.autocast("cpu", torch.bfloat16, enabled=spec["bf16"]):
            value = run(input_ids=ids, labels=ids).loss / spec["accumulate"]
        value.backward()
        if (step + 1) % spec["accumulate"] == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    marks.append((time.perf_counter(), 0, 0))
    return _rates(marks, spec["accumulate"])


def _qwen3(spec: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=spec["vocab_size"],
            hidden_size=spec["dim"],
            intermediate_size=spec["ffn"],
            num_hidden_layers=spec["layers"],
            tie_word_embeddings=True,
            num_attention_heads=spec["heads"],
            num_key_value_heads=spec["kv_heads"],
            head_dim=spec["dim"] // spec["heads"],
            max_position_embeddings=2048,
        )
    )


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
    return {
        "output_dir": spec["out"],
        "per_device_train_batch_size": spec["rows"],
        "max_steps": spec["updates"],
        "learning_rate": 5e-4,
        "report_to": [],
        "logging_steps": 1 << 20,
        "save_strategy": "no",
        "max_length": spec["seq_len"],
        "use_cpu": True,
        "bf16": spec["bf16"],
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
        "dataset_num_proc": None,
    }


def trl_sft(spec: dict[str, Any]) -> dict[str, float]:
    """``SFTTrainer`` with dynamic padding, its default; samples a second over whole conversations."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(spec["chats"]).read_text(encoding="utf-8").splitlines()]
    clock, marks = _clock()
    trainer = SFTTrainer(
        model=_qwen3(spec),
        args=SFTConfig(**_options(spec)),
        train_dataset=Dataset.from_list([{"messages": r["messages"]} for r in rows]),
        processing_class=AutoTokenizer.from_pretrained(spec["tokenizer"]),
        callbacks=[clock],
    )
    trainer.train()
    return {"samples": spec["rows"] / _median(marks)}


def trl_dpo(spec: dict[str, Any]) -> dict[str, float]:
    """``DPOTrainer`` with its reference pass in every step; pairs a second."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    _qwen3(spec).save_pretrained(start := Path(spec["out"]) / "start")  # the reference model is read from a directory
    rows = [json.loads(line) for line in Path(spec["pairs"]).read_text(encoding="utf-8").splitlines()]
    pairs = [
        {
            "prompt": r["prompt"],
            "chosen": [{"role": "assistant", "content": r["chosen"]}],
            "rejected": [{"role": "assistant", "content": r["rejected"]}],
        }
        for r in rows
    ]
    clock, marks = _clock()
    trainer = DPOTrainer(
        model=str(start),
        args=DPOConfig(**_options(spec)),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(spec["tokenizer"]),
        callbacks=[clock],
    )
    trainer.train()
    return {"samples": spec["rows"] / _median(marks)}


def _median(marks: list[float]) -> float:
    steps = [b - a for a, b in pairwise(marks)]
    return statistics.median(steps[WARM_UP:] or steps)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    loops = {"minimind": minimind, "teacher": teacher, "qwen3": qwen3, "trl_sft": trl_sft, "trl_dpo": trl_dpo}
    print("\n" + json.dumps(loops[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))))
