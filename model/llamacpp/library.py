"""llama.cpp itself, by the ``cyllama`` package: whether it is here, and its binding with what that lacks."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

INSTALL = "pip install 'full-pipeline[gguf-run]' (the package cyllama: llama.cpp with its Python binding)"


def installed() -> bool:
    """Whether llama.cpp can be run here."""
    return importlib.util.find_spec("cyllama") is not None


@functools.cache
def binding() -> Any:
    """cyllama's module of llama.cpp's functions, silenced. Raises ValueError saying how to install it."""
    if not installed():
        raise ValueError(f"llama.cpp is not installed; {INSTALL}")
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    return llama_cpp


@functools.cache
def model_class() -> Any:
    """Its class of a model, with the size of the vocabulary, which its contexts look for there (cyllama 0.2.18)."""
    parent: Any = binding().LlamaModel

    class Model(parent):
        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    return Model
