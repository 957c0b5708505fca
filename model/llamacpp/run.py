"""A GGUF file computed by llama.cpp: token ids, logits and answers, for tests and for what a quantised form costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from model.llamacpp.library import binding, model_class

BATCH = 512
"""Tokens of one call of llama.cpp."""


class LlamaCpp:
    """A GGUF file, on the CPU. ``exact`` keeps keys and values in fp32 (llama.cpp's default is fp16)."""

    def __init__(self, path: str | Path, *, window: int = 0, threads: int = 1, exact: bool = False) -> None:
        self._binding = binding()
        parameters = self._binding.LlamaModelParams()
        parameters.n_gpu_layers = 0
        self._model = model_class()(path_model=str(path), params=parameters, verbose=False)
        self._vocab = self._model.get_vocab()
        self.vocab_size: int = self._vocab.n_vocab
        self.window: int = window or self._model.n_ctx_train
        context = self._binding.LlamaContextParams()
        context.n_ctx = self.window
        context.n_batch = context.n_ubatch = min(BATCH, self.window)
        context.n_threads = context.n_threads_batch = threads
        if exact:
            context.type_k = context.type_v = 0  # GGML_TYPE_F32
            context.flash_attn_type = 0
        self._context = self._binding.LlamaContext(model=self._model, params=context, verbose=False)
        self._read: list[int] = []  # what the cache holds
        self._batch = self._binding.LlamaBatch(n_tokens=min(BATCH, self.window), embd=0, n_seq_max=1, verbose=False)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text, ``special`` tokens in it as themselves or as plain text."""
        return list(self._vocab.tokenize(text, False, special))

    def logits(self, ids: Sequence[int], first: int = 0) -> np.ndarray:
        """Logits fp32 [len(ids) - first, vocab] after each of ``ids`` from the index ``first`` on. What ids begin with
        alike to those of the call before is not read again."""
        known = _alike(ids[: max(0, min(first, len(ids) - 1))], self._read)
        self._context.memory_seq_rm(0, known, -1)
        self._read = list(ids)
        rows: list[np.ndarray] = []
        for begin in range(known, len(ids), BATCH):
            part = ids[begin : begin + BATCH]
            self._decode(part, begin, first)
            wanted = range(max(0, first - begin), len(part))
            rows += [np.asarray(self._context.get_logits_ith(i), dtype=np.float32) for i in wanted]
        return np.stack(rows) if rows else np.zeros((0, self.vocab_size), np.float32)

    def greedy(self, prompt: Sequence[int], *, stop: Collection[int], max_new_tokens: int) -> list[int]:
        """The likeliest continuation, without the token that ended it."""
        self._context.kv_cache_clear()
        self._read = []
        sampler = self._binding.LlamaSampler()
        sampler.add_greedy()
        answer: list[int] = []
        for part in range(0, len(prompt), BATCH):
            self._decode(prompt[part : part + BATCH], part, len(prompt) - 1)
        room = min(max_new_tokens, self.window - len(prompt))
        while len(answer) < room:
            token = int(sampler.sample(self._context, -1))
            if token in stop:
                break
            answer.append(token)
            if len(answer) < room:
                self._decode([token], len(prompt) + len(answer) - 1, 0)
        sampler.close()
        return answer

    def _decode(self, ids: Sequence[int], begin: int, first: int) -> None:
        """Read tokens at positions from ``begin`` on; logits are wanted of those from position ``first`` on."""
        self._batch.clear()
        for place, token in enumerate(ids, begin):
            self._batch.add(token, place, [0], place >= first)
        self._context.decode(self._batch)

    def close(self) -> None:
        """Give the memory back."""
        self._batch.close()
        self._context.close()
        self._model.close()


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
