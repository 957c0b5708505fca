"""The arguments of ``pipeline serve``, and those that it shares with ``pipeline chat``."""

from __future__ import annotations

import argparse

from flows.grammar import AddCommand, Completer


def talking(sub: argparse.ArgumentParser) -> None:
    """How answers are drawn and what the model is told, for one conversation."""
    sub.add_argument("--system", default="", help="what the model is told before the conversation")
    sub.add_argument(
        "--temperature", type=float, help="0 is greedy; default: what the model's generation_config.json says"
    )
    sub.add_argument("--top-k", type=int, help="draw from the likeliest K tokens; needs a temperature above 0")
    sub.add_argument(
        "--top-p", type=float, help="draw from the likeliest tokens of this share; needs a temperature too"
    )
    sub.add_argument(
        "--min-p", type=float, help="draw from tokens at least this share as likely as the likeliest; likewise"
    )
    sub.add_argument(
        "--max-new-tokens", "--max-tokens", dest="max_tokens", type=int, default=0,
        help="longest answer; 0 takes the model's own limit",
    )  # fmt: skip
    sub.add_argument("--seed", type=int, default=0)


def serving(command: AddCommand, presets: Completer) -> None:
    """The command that opens a server."""
    sub = command(
        "serve",
        "serve models behind OpenAI's API, with a chat page",
        "  pipeline serve tiny                          the champion of a preset, or its newest model\n"
        "  pipeline serve tiny --compare sft            two columns: the model beside an earlier stage of its run\n"
        "  pipeline serve tiny dpo/3fa9 --port 8080     several models, each by its name\n"
        "  pipeline serve --backend llama.cpp --upstream http://127.0.0.1:8081",
    )
    sub.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="a preset's name, a run's id, a reference like dpo/3fa9, a stage of the first one's run, or a directory",
    ).completer = presets  # type: ignore[attr-defined]  # fmt: skip
    sub.add_argument("--compare", metavar="OTHER", help="serve this one too; the page opens with it in a second column")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    sub.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    sub.add_argument("--api-key", default="", metavar="KEY", help="ask for this key; also from PIPELINE_API_KEY")
    sub.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="let pages of this origin call it")
    sub.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="another name under which a server on this machine may be called, as through a proxy",
    )  # fmt: skip
    sub.add_argument("--slots", type=_positive, default=16, help="answers made at once (default 16)")
    sub.add_argument("--max-queue", type=int, default=64, help="answers that may wait for a slot (default 64)")
    sub.add_argument("--max-tokens", type=int, default=0, help="longest answer of a request; 0: the model's window")
    sub.add_argument("--max-body", type=_positive, default=4096, metavar="KB", help="largest request (default 4096)")
    sub.add_argument("--timeout", type=float, default=600.0, help="seconds a request may take, waiting included")
    sub.add_argument("--grace", type=_positive, default=60, help="seconds for running answers when told to end")
    sub.add_argument("--poll", type=float, default=5.0, help="seconds between looks at which model is the champion")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    sub.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on a GPU, else fp32")
    sub.add_argument(
        "--backend", choices=("own", "llama.cpp", "vllm"), default="own", help="what makes the answers (default own)"
    )
    sub.add_argument("--upstream", default="", metavar="URL", help="where llama-server or vllm serve listens")
    sub.add_argument("--force", action="store_true", help="also when a model was withdrawn")


def _positive(text: str) -> int:
    """A whole number above 0."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number
