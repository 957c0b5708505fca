"""``pipeline``: the command line. Imports what a command needs when it runs, so that ``--help`` and ``plan`` are quick.

Exit codes: 0 done, 1 a stage failed, 2 what was asked for is wrong (bad config, unknown reference), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from model.running.devices import GPUS, Device
from storage.store import StoreError, open_store

EPILOG = """\
examples:
  pipeline run tiny                                   the demo: everything, on this machine
  pipeline run tiny pretrain.steps=200 --until pretrain
  pipeline run gpt-teacher ingest.sources=my.jsonl sft.sources=my.jsonl
  pipeline plan tiny pretrain.optim.lr=1e-3           what would run, and why; runs nothing
  pipeline run tiny --refresh sft                     build one stage again
  pipeline chat tiny --prompt "What is MinHash?"
  pipeline lineage tiny                               what the newest model was made from

Everything is written below .pipeline/ (or PIPELINE_HOME). Every option of every section: pipeline config PRESET
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``pipeline`` command."""
    args = _parser().parse_args(argv)
    try:
        sys.exit(args.run(args) or 0)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except StoreError as error:
        sys.exit(fail(str(error)))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def fail(problems: list[str] | str, code: int = 2) -> int:
    """Print problems to stderr, one a line; gives the exit code."""
    for line in [problems] if isinstance(problems, str) else problems:
        print(f"error: {line}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline",
        description="Raw text in, an aligned, evaluated, exported language model out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    for name, run, text in (
        ("run", _run, "run the pipeline; what is cached is not done again"),
        ("plan", _plan, "say what a run would do and why, without running anything"),
    ):
        sub = command(name, run, text)
        sub.add_argument("preset", help="a preset's name (see `pipeline presets`) or a .toml file")
        sub.add_argument(
            "overrides", nargs="*", metavar="section.key=value", help="config overrides, e.g. pretrain.optim.lr=1e-3"
        )
        sub.add_argument("--until", metavar="STAGE", help="stop after this stage")
        sub.add_argument(
            "--refresh", metavar="STAGE", action="append", default=[], help="build this stage again (repeatable)"
        )
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    sub = command("sweep", _sweep, "run every combination of some values and compare one number")
    sub.add_argument("preset")
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value,value",
        help="values parted by commas; in [brackets] a list is one value",
    )
    sub.add_argument("--until", metavar="STAGE", help="stop every child after this stage")
    sub.add_argument(
        "--metric",
        metavar="STAGE.NUMBER",
        help="the number to sort by (default: held-out loss of the last swept training stage)",
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    sub = command("config", _config, "print a preset's whole config, overrides applied, or what every option means")
    sub.add_argument("preset")
    sub.add_argument("overrides", nargs="*", metavar="section.key=value")
    sub.add_argument("--explain", action="store_true", help="every option with its meaning, type and default")

    sub = command(
        "estimate",
        _estimate,
        "calculate memory and time of a preset's pretraining on GPUs (without any) or on this machine's CPU",
    )
    sub.add_argument("preset")
    sub.add_argument("overrides", nargs="*", metavar="section.key=value")
    sub.add_argument("--gpus", type=int, default=8, help="GPUs in all, 8 to a node (default 8); with --gpu cpu, ranks")
    sub.add_argument(
        "--gpu",
        choices=(*GPUS, "cpu"),
        metavar="NAME",
        default="h200",
        help=f"{', '.join(GPUS)}, or cpu: this machine's, its speed is measured (default h200)",
    )
    sub.add_argument(
        "--utilisation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the peak that your own runs reach, instead of the table's",
    )
    sub.add_argument(
        "--tokens",
        type=float,
        default=0.0,
        help="pretraining tokens in all, where the preset gives epochs and not steps",
    )
    sub.add_argument("--json", action="store_true")

    _artifact_commands(command)
    command("up", _up, "start the Prefect server, MLflow and a worker on this machine, and deploy the flow")
    command("down", _down, "stop what `up` or a run started")
    command(
        "join", _join, "train as one more node for runs with resources.nnodes > 1 on another machine, until interrupted"
    )
    return parser


def _artifact_commands(command: Any) -> None:
    """The commands on presets, and on what runs left behind; ``command(name, run, text)`` adds one."""
    command("presets", _presets, "list the presets")
    sub = command("show", _show, "show an artifact: what it is, what made it, its files")
    sub.add_argument("ref", help="stage, stage/key or the start of a digest, e.g. pretrain or pretrain/3fa9")
    sub.add_argument("--json", action="store_true")
    sub = command(
        "lineage", _lineage, "print what a model (or any artifact) was made from, or with --down what was made from it"
    )
    sub.add_argument(
        "ref", help="a preset's name (its newest model), a stage, stage/key, or with --down a source's name"
    )
    sub.add_argument(
        "--down", action="store_true", help="go the other way: everything made from this artifact or source"
    )
    sub.add_argument("--json", action="store_true")
    sub = command("chat", _chat, "talk to a model")
    sub.add_argument("model", help="a preset's name, a reference like dpo/3fa9, or a model directory")
    sub.add_argument("--prompt", help="answer this one prompt and print nothing else")
    sub.add_argument(
        "--temperature", type=float, help="0 is greedy; default: what the model's generation_config.json says"
    )
    sub.add_argument("--max-tokens", type=int, default=0, help="longest answer; 0 takes the model's own limit")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--force", action="store_true", help="also when the model was withdrawn")
    sub = command("adopt", _adopt, "accept an artifact made by older code as what today's code would make")
    sub.add_argument("ref", help="stage/key of an artifact, or a preset: all that earlier code made for a run of it")
    sub.add_argument("preset", nargs="?", help="today's preset (default: that of the run which made it)")
    sub.add_argument("overrides", nargs="*", metavar="section.key=value")
    sub.add_argument("--force", action="store_true", help="also when the stage's section or version differs")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be adopted")
    sub = command("invalidate", _invalidate, "withdraw a source or an artifact and everything made from it")
    sub.add_argument("what", metavar="SOURCE_OR_REF", help="a source's name or digest, or stage/key")
    sub.add_argument("--reason", help="why; shown wherever a withdrawn artifact is asked for")
    sub.add_argument("--undo", action="store_true", help="take the withdrawal back")
    sub = command("verify", _verify, "hash every file of every artifact again and set damaged ones aside")
    sub.add_argument("ref", nargs="?", help="only this artifact or stage")
    sub = command("gc", _gc, "delete artifacts that no kept run reaches")
    sub.add_argument("--keep", type=int, default=5, metavar="N", help="runs to keep, newest first (default 5)")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be deleted")


def _checked(args: argparse.Namespace) -> tuple[Any, Any] | int:
    """The config and its resolved inputs, or an exit code after all problems were printed."""
    from flows.dag import stage_names
    from pipeline.config.tree import ConfigError, load
    from tasks.running.sources import given

    problems = [
        f"{name}  no such stage; stages are {', '.join(stage_names())}"
        for name in [*args.refresh, args.until]
        if name and name not in stage_names()
    ]
    config = inputs = None
    try:
        config = load(args.preset, args.overrides)
        inputs = given(config)
    except ConfigError as error:
        problems += error.problems
    return fail(problems) if problems else (config, inputs)


def _run(args: argparse.Namespace) -> int:
    checked = _checked(args)
    if isinstance(checked, int):
        return checked
    from flows.runner import run
    from storage.places import home
    from tasks.running.sources import withdrawn

    store = open_store(home() / "store")
    store.check()
    problems = withdrawn(checked[1], store)
    return fail(problems) if problems else run(args)


def _plan(args: argparse.Namespace) -> int:
    checked = _checked(args)
    if isinstance(checked, int):
        return checked
    from flows.dag import full
    from flows.inspect import print_plan
    from tasks.running.plan import PlanRun

    config, inputs = checked
    plan = PlanRun("plan", config.resources, args.until, tuple(args.refresh))
    with plan:
        full(config, inputs)
    return print_plan(plan.planned, args.json)


def _sweep(args: argparse.Namespace) -> int:
    from flows.sweep import sweep

    return sweep(args)


def _config(args: argparse.Namespace) -> int:
    from flows.inspect import explain_config
    from pipeline.config.tree import ConfigError, load

    try:
        config = load(args.preset, args.overrides)
    except ConfigError as error:
        return fail(error.problems)
    print(
        explain_config(config)
        if args.explain
        else json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False)
    )
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from model.running.estimate.engines import describe
    from model.running.estimate.memory import Plan
    from model.running.estimate.table import table
    from pipeline.config.tree import ConfigError, load

    try:
        config = load(args.preset, args.overrides)
        section, on = config.pretrain, config.resources
        model = replace(section.model, vocab_size=section.model.vocab_size or config.tokenizer.vocab_size)
        tokens = args.tokens or float(section.steps * section.batch_tokens)
        device = _this_cpu(args.gpus, on.dtype) if args.gpu == "cpu" else GPUS[args.gpu]
        compiled = on.compile == "on" if device.cpu else on.compile != "off"
        plan = Plan(
            model,
            section.optim,
            section.seq_len,
            section.batch_tokens,
            tokens,
            args.gpus,
            device,
            on.micro_batch,
            on.checkpointing,
            on.offload,
            compiled,
            args.utilisation,
        )
    except ConfigError as error:
        return fail(error.problems)
    except ValueError as error:
        return fail(str(error))
    print(json.dumps(describe(plan), sort_keys=True) if args.json else table(plan))
    return 0


def _this_cpu(ranks: int, dtype: str) -> Device:
    """This machine's CPU, shared evenly by ``ranks``; its speed is measured, by torch."""
    from model.running.machine import cpu_device

    return cpu_device(max(1, ranks), dtype)


def _presets(args: argparse.Namespace) -> int:
    from pipeline.config.tree import about, presets

    for name in presets():
        print(f"{name:<16} {about(name)}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from flows.inspect import show

    return show(args.ref, args.json)


def _lineage(args: argparse.Namespace) -> int:
    from flows.inspect import lineage

    return lineage(args.ref, args.down, args.json)


def _chat(args: argparse.Namespace) -> int:
    from flows.inspect import find_model

    try:
        directory = find_model(args.model, args.force)
    except LookupError as error:
        return fail(str(error))
    from model.chat import Chat, converse
    from model.generation.generate import Sampling

    sampling = None if args.temperature is None else Sampling(args.temperature, seed=args.seed)
    try:
        chat = Chat(directory, sampling=sampling, max_new_tokens=args.max_tokens)
        if args.prompt is None:
            converse(chat)
        else:
            print(chat.answer([{"role": "user", "content": args.prompt}]))
    except (ValueError, OSError) as error:
        return fail(f"{args.model}  {error}")
    return 0


def _adopt(args: argparse.Namespace) -> int:
    from flows.curate import adopt

    preset, overrides = args.preset, args.overrides
    if preset and "=" in preset:  # adopt tiny pretrain.steps=10: the preset is the reference itself
        preset, overrides = None, [preset, *overrides]
    return adopt(args.ref, preset, overrides, args.force, args.dry_run)


def _invalidate(args: argparse.Namespace) -> int:
    from flows.curate import invalidate, undo

    return undo(args.what) if args.undo else invalidate(args.what, args.reason)


def _verify(args: argparse.Namespace) -> int:
    from flows.inspect import verify

    return verify(args.ref)


def _gc(args: argparse.Namespace) -> int:
    from flows.inspect import collect

    return collect(args.keep, args.dry_run)


def _up(args: argparse.Namespace) -> int:
    from flows.services import up
    from storage.places import home

    up(home())
    return 0


def _down(args: argparse.Namespace) -> int:
    from flows.services import down
    from storage.places import home

    down(home())
    return 0


def _join(args: argparse.Namespace) -> int:
    from storage.places import home
    from tasks.running.join import join

    join(home(), lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    main()
