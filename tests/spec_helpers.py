"""Specs of small training runs, and the trainer of each objective."""

import os
import runpy
from dataclasses import fields as fields_of
from pathlib import Path

from model.dpo import DpoTrainer
from model.reward import RewardTrainer
from model.rl import RlTrainer
from model.running.how import How
from model.sft import SftTrainer
from model.specs.base import parse
from model.training.trainer import Trainer

TRAINERS = {"pretrain": Trainer, "sft": SftTrainer, "dpo": DpoTrainer, "reward": RewardTrainer, "rl": RlTrainer}
PLAIN = {"dtype": "fp32", "compile": "off", "device": os.environ.get("PIPELINE_TEST_DEVICE", "cpu"), "log_every": 1}
"""Arithmetic that does not depend on the machine under the test; a test of another form says so."""
NUMBERS = {"seq_len": 64, "batch_tokens": 512, "steps": 40, "epochs": 1.0, "seed": 0, "eval_every": 0, "eval_tokens": 0}
USUAL = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "specs.py"))["OWN"]
OWN = USUAL | {
    "reward": {"lora": {}, "center": 0.0},
    "rl": {
        "lora": {},
        "algorithm": "grpo",
        "prompts": 4,
        "num_generations": 4,
        "max_prompt_length": 24,
        "max_completion_length": 12,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "rewards": {"exact": 1.0},
        "length_limit": 0,
        "num_iterations": 0,
        "num_mini_batches": 1,
        "epsilon": 0.2,
        "epsilon_high": 0.0,
        "delta": 0.0,
        "beta": 0.0,
        "kl_estimator": "k3",
        "use_bias_correction_kl": True,
        "importance_sampling_level": "auto",
        "importance_sampling_clip_max": 3.0,
        "scale_rewards": "auto",
        "mask_truncated_completions": False,
        "whiten_advantages": True,
        "filter_samples": 0,
        "min_pass_rate": 0.0,
        "max_pass_rate": 1.0,
        "patience": 5,
        "eval_problems": 0,
        "eval_samples": 1,
    },
}


def spec(objective="pretrain", **fields):
    """The spec of ``objective`` with these fields; those of :class:`How` may stand among them."""
    how = PLAIN | {f.name: fields.pop(f.name) for f in fields_of(How) if f.name in fields}
    values = {**NUMBERS, "optim": {}, **OWN[objective], **fields, "how": how}
    return parse(TRAINERS[objective].SPEC, values)


def train(spec, ranks):
    """Train in this process; the metrics."""
    return TRAINERS[spec.NAME](spec, ranks).train()
