"""``pipeline chat``: which model is meant, how it is sampled, and one answer or a conversation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.environment import erase_whole_characters
from flows.inspect import find_model, find_record
from flows.runs import describe, facts, meant
from storage.places import home

if TYPE_CHECKING:
    from model.generation.sampling import Sampling
    from model.tokens.turns import Message


def chat(args: Any) -> int:
    """Talk to the model of the parsed command line; exit code 2 when there is none, or an option will not do."""
    try:
        directory = find_model(args.model, args.force)
        print(f"{args.model}: {named(args.model, directory)}", file=sys.stderr, flush=True)  # before torch is loaded
        from model.chat import Chat, converse

        talk = Chat(directory, sampling=_sampling(args, directory), max_new_tokens=args.max_tokens)
        if args.prompt is None:
            erase_whole_characters()
            converse(talk, args.system)
        else:
            told: list[Message] = [{"role": "system", "content": args.system}] if args.system else []
            print(talk.answer([*told, {"role": "user", "content": args.prompt}]))
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {args.model}  {error}", file=sys.stderr)
        return 2
    return 0


def named(ref: str, directory: Path) -> str:
    """Which model a name stands for: its artifact, its run, and what was asked for there."""
    if (Path(ref) / "config.json").is_file():
        return str(directory.resolve())
    if run := meant(ref):
        return describe(run)
    record = find_record(ref)
    asked = facts(home() / "runs" / str(record.get("run"))).asked
    return f"{record['stage']}/{record['key'][:12]} of run {record.get('run')}" + (f": {asked}" if asked else "")


def _sampling(args: Any, directory: Path) -> Sampling | None:
    """How to sample: what is given, the rest from the model's own defaults. Raises ValueError for what would
    have no effect."""
    if args.temperature is args.top_k is args.top_p is None and not args.seed:
        return None
    from model.chat import generation_defaults
    from model.generation.sampling import Sampling

    own = generation_defaults(directory)
    temperature = own.get("temperature", 0.0) if args.temperature is None else args.temperature
    if not temperature and (args.top_k or args.top_p is not None):
        raise ValueError(
            "--top-k and --top-p choose among drawn tokens, and this model answers greedily: give --temperature"
        )
    top_p = own.get("top_p", 1.0) if args.top_p is None else args.top_p
    return Sampling(temperature, args.top_k or 0, top_p, seed=args.seed)
