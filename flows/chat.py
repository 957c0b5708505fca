"""``pipeline chat``: which model is meant, how it is sampled, and one answer or a conversation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flows.environment import erase_whole_characters
from flows.inspect import find_model, find_record
from flows.runs import describe, facts, meant, model_stages
from storage.places import home

if TYPE_CHECKING:
    from model.chat import Chat
    from model.generation.sampling import Sampling
    from model.tokens.turns import Message


def chat(args: argparse.Namespace) -> int:
    """Talk to the model of the parsed command line; exit code 2 when there is none, or an option will not do."""
    names = [args.model, *([args.compare] if args.compare else [])]
    try:
        refs = [beside(name, args.model) for name in names]
        directories = [find_model(ref, args.force) for ref in refs]
        for name, ref, directory in zip(names, refs, directories, strict=True):  # before torch is loaded
            print(f"{name}: {named(ref, directory)}", file=sys.stderr, flush=True)
        from model.chat import Chat, converse

        talks = [
            Chat(directory, name=name, sampling=_sampling(args, directory), max_new_tokens=args.max_tokens)
            for name, directory in zip(names, directories, strict=True)
        ]
        if args.prompt is None:
            erase_whole_characters()
            converse(*talks, system=args.system)
        else:
            _answer(talks, args)
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {args.model}  {error}", file=sys.stderr)
        return 2
    return 0


def _answer(talks: list[Chat], args: argparse.Namespace) -> None:
    """Print the answer to the one prompt as it is made; of two models, each below its name."""
    said: list[Message] = [{"role": "system", "content": args.system}] if args.system else []
    for talk in talks:
        if len(talks) > 1:
            print(f"[{talk.name}]")
        for piece in trimmed(talk.stream([*said, {"role": "user", "content": args.prompt}])):
            print(piece, end="", flush=True)
        print()


def trimmed(pieces: Iterable[str]) -> Iterator[str]:
    """A text in pieces without the blank space around it."""
    held = ""
    begun = False
    for piece in pieces:
        text = held + (piece if begun else piece.lstrip())
        begun = begun or bool(text)
        shown = text.rstrip()
        held = text[len(shown) :]
        if shown:
            yield shown


def beside(name: str, first: str) -> str:
    """What a name means next to the ``first`` one: a stage's is its model in that run, any other itself."""
    if (run := meant(first)) and (made := [s for s in run.stages if s["name"] == name]) and name in model_stages():
        return f"{name}/{made[-1]['key']}"
    return name


def named(ref: str, directory: Path) -> str:
    """Which model a name stands for: its artifact, its run, and what was asked for there."""
    if (Path(ref) / "config.json").is_file():
        return str(directory.resolve())
    if run := meant(ref):
        return describe(run)
    record = find_record(ref)
    asked = facts(home() / "runs" / str(record.get("run"))).asked
    return f"{record['stage']}/{record['key'][:12]} of run {record.get('run')}" + (f": {asked}" if asked else "")


def _sampling(args: argparse.Namespace, directory: Path) -> Sampling:
    """How to sample: what is given, the rest from the model's own defaults. Raises ValueError for what would
    have no effect."""
    from model.chat import generation_defaults, own_sampling

    narrow = {"top_k": args.top_k, "top_p": args.top_p, "min_p": args.min_p}
    sampling = own_sampling(
        generation_defaults(directory), temperature=args.temperature, seed=args.seed or None, **narrow
    )
    if not sampling.temperature and (useless := [name for name, value in narrow.items() if value]):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in useless)
        raise ValueError(
            f"{options}: they choose among drawn tokens, and this model answers greedily: give --temperature"
        )
    return sampling
