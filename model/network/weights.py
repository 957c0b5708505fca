"""Model directories: safetensors, config.json and tokenizer files that open in stock ``transformers``.

Our parameter names are theirs, so this is a translation of configs (:mod:`model.network.hf_config`), plus the layout
of experts (they keep one matrix per expert in a file, we compute with all of a layer in one tensor). Files are written
deterministically.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.network.hf_config import from_hf, to_hf
from model.network.minimind import read_minimind
from model.network.transformer import Transformer
from model.running.files import replacing, write_json
from model.specs.shape import ModelConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_EXPERT = re.compile(r"(.*\.mlp\.experts\.)(\d+)\.(\w+)\.weight$")


def read_config(path: str | Path) -> ModelConfig:
    """The shape of the model in a directory or a MiniMind ``.pth``. Raises ValueError for what is neither."""
    path = Path(path)
    if path.is_file():
        return read_minimind(path)[0]
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no config.json; a model directory is needed") from None
    return from_hf(values, str(path / "config.json"))


def load_model(path: str | Path) -> Transformer:
    """The model in a directory or a MiniMind ``.pth``, weights fp32 on the CPU. Raises ValueError when files are
    missing or do not fit."""
    path = Path(path)
    if path.is_file():
        config, state = read_minimind(path)
    else:
        config, state = read_config(path), {}
        shards = sorted(path.glob("model*.safetensors"))
        if not shards:
            raise ValueError(f"{path}: no model*.safetensors")
        for shard in shards:
            state |= load_file(shard)
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to_empty(device="cpu")
    load_state(model, {name: value.float() for name, value in state.items()}, str(path))
    return model


def widen(model: Transformer, vocabulary: int, tokenizer: Path) -> Transformer:
    """A copy of ``model`` with embedding (and head) rows for the ids that its ``tokenizer`` has been given, up to
    ``vocabulary``.

    A token that a merge makes begins as the mean of the two it is made from, any other as the mean of all rows, where
    it is as likely as an average token (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models").
    """
    spec = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    known, vocab = model.config.vocab_size, spec["vocab"]
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in spec.get("merges", [])]
    made = {vocab[a + b]: (vocab[a], vocab[b]) for a, b in pairs if vocab.get(a + b, 0) >= known}
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            rows = list(state[name])
            middle = state[name].mean(0)
            for i in range(known, vocabulary):
                rows.append((rows[made[i][0]] + rows[made[i][1]]) / 2 if i in made else middle)
            state[name] = torch.stack(rows)
    wide = Transformer(replace(model.config, vocab_size=vocabulary))
    wide.load_state_dict(state)
    return wide


def load_state(model: Transformer, state: dict[str, Tensor], where: str) -> None:
    """Put the tensors of a Hugging Face state dict into ``model``; ValueError lists what is missing, extra or
    misshapen."""
    state = _stack_experts(state)
    if model.config.tied:
        state.pop("lm_head.weight", None)
    own = dict(model.named_parameters())
    wrong = [f"missing {name}" for name in own if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in own and not name.endswith("rotary_emb.inv_freq")]
    wrong += [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{where}: weights do not fit config.json:"
            f" {'; '.join(wrong[:5])}{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}"
        )
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(state[name])


def save_model(
    model: Transformer, path: str | Path, tokenizer: str | Path | None = None, state: dict[str, Tensor] | None = None
) -> None:
    """Write a directory that ``transformers`` opens: weights as they are (fp32 masters), configs, and a tokenizer's
    files.

    ``state`` replaces the model's own parameters, for engines that shard them.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    ids: dict[str, Any] = {}
    if tokenizer is not None:
        for name in TOKENIZER_FILES:
            if (Path(tokenizer) / name).is_file():
                shutil.copyfile(Path(tokenizer) / name, path / name)
        ids = special_ids(Path(tokenizer))
    values = {name: p.detach().cpu().contiguous() for name, p in (state or dict(model.named_parameters())).items()}
    with replacing(path / "model.safetensors") as temporary:
        save_file(_split_experts(values), temporary, metadata={"format": "pt"})
    config = to_hf(model.config, {k: v[0] if isinstance(v, list) else v for k, v in ids.items()})
    write_json(path / "config.json", config, indent=2)
    generation = {"do_sample": False, "max_length": model.config.max_seq_len} | ids
    write_json(path / "generation_config.json", generation, indent=2)


def special_ids(tokenizer: Path) -> dict[str, Any]:
    """bos, pad and the ids that end a text (the turn's end first, then the document's), read from a tokenizer's
    files."""
    try:
        config = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
        added = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    except FileNotFoundError:
        return {}
    known = {token["content"]: token["id"] for token in added}
    text = {name: config.get(f"{name}_token") for name in ("bos", "eos", "pad")}
    text = {name: value.get("content") if isinstance(value, dict) else value for name, value in text.items()}
    ids = {f"{name}_token_id": known[value] for name, value in text.items() if value in known}
    ends = list(dict.fromkeys(known[name] for name in (text["eos"], "<|endoftext|>") if name in known))
    return ids | ({"eos_token_id": ends} if ends else {})


def _stack_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One [experts, out, in] tensor per layer and projection from the one-matrix-per-expert names."""
    stacks: dict[str, dict[int, Tensor]] = {}
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        match = _EXPERT.match(name)
        if match:
            stacks.setdefault(match[1] + match[3], {})[int(match[2])] = value
        else:
            kept[name] = value
    return kept | {name: torch.stack([parts[i] for i in sorted(parts)]) for name, parts in stacks.items()}


def _split_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        head, inside, projection = name.partition(".mlp.experts.")
        if inside:
            split |= {f"{head}.mlp.experts.{i}.{projection}.weight": part.clone() for i, part in enumerate(value)}
        else:
            split[name] = value
    return dict(sorted(split.items()))
