"""Small real things for the tests of tokens, generation and evaluation: shards of two languages, a tokenizer, a model
that knows four facts."""

import functools
import hashlib
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.tokens import TokenizerSection
from pipeline.tokens.tokenizer import make_tokenizer

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # models this small only wait for each other on more, here and in the processes tests start

EN = (
    "The tokenizer splits a text into pieces, and the model learns which piece follows. It's 1984 again: don't panic!\n"
)
ZH = "分词器把文本切成词元，模型学习下一个词元是什么。语言模型由数据、算力和耐心炼成；没有魔法。\n"
FACTS = {
    "什么是词元？": "词元是文本的最小单位。",
    "什么是损失？": "损失衡量预测的错误。",
    "What is a token?": "A token is a piece of text.",
    "What is loss?": "Loss measures wrong predictions.",
}


def documents():
    """(text, language) of forty documents in which words vary."""
    words = ["alpha", "beta", "gamma", "delta", "数据", "梯度", "权重", "词表"]
    return [
        ((EN if i % 2 else ZH) * 3 + f"{words[i % 8]} {words[i * 3 % 8]} {i} " * 5, "en" if i % 2 else "zh")
        for i in range(40)
    ]


def write_shards(root, rows, parts=1, split="train"):
    """Shards as the shard stage leaves them; rows are (text, lang) or (text, lang, kind)."""
    folder = Path(root) / split
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // parts)
    for part in range(parts):
        own = [(*row, "text")[:3] for row in rows[part * size : (part + 1) * size]]
        columns = {
            "id": [hashlib.sha256(text.encode()).hexdigest()[:32] for text, _, _ in own],
            "text": [text for text, _, _ in own],
            "lang": [lang for _, lang, _ in own],
            "kind": [kind for _, _, kind in own],
        }
        pq.write_table(pa.table(columns), folder / f"part-{part:05d}.parquet", row_group_size=7)
    return Path(root)


@functools.cache
def tokenizer_dir():
    """A trained tokenizer of 450 ids."""
    root = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    make_tokenizer(TokenizerSection(vocab_size=450), write_shards(root / "shards", documents()), root / "tokenizer")
    return root / "tokenizer"


def new_model(seed=0, **shape):
    """A small random model whose blocks all do something."""
    import torch

    from model.network.transformer import Transformer, initialize
    from model.specs.shape import ModelConfig

    sizes = {"vocab_size": 450, "dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 128, "max_seq_len": 128}
    model = Transformer(ModelConfig(**{**sizes, **shape}))
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if "embed" in name else 0.1))
    return model


@functools.cache
def taught_dir():
    """A model directory that answers the four FACTS, trained in a second or two."""
    import torch
    import torch.nn.functional as F

    from model.network.weights import save_model
    from model.tokens.chat import ChatTokenizer

    chat, model = ChatTokenizer.load(tokenizer_dir()), new_model()
    rows = [chat.chat([{"role": "user", "content": q}, {"role": "assistant", "content": a}]) for q, a in FACTS.items()]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [0] * (longest - len(i)) for i, _ in rows])
    mask = torch.tensor([m + [0] * (longest - len(m)) for _, m in rows])[:, 1:] > 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.enable_grad():  # the first to ask may have turned gradients off
        for _ in range(70):
            loss = F.cross_entropy(model(ids)[:, :-1][mask], ids[:, 1:][mask])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path = Path(tempfile.mkdtemp(prefix="model-"))
    save_model(model, path, tokenizer_dir())
    return path
