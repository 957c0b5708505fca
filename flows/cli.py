"""``pipeline``: the command line. Imports what a command needs when it runs, so that ``--help`` and ``plan`` are quick.

Exit codes: 0 done, 1 a stage failed, 2 what was asked for is wrong (bad config, unknown reference), 130 interrupted,
143 told to end (SIGTERM, or a terminal that closed).
"""

# PYTHON_ARGCOMPLETE_OK
from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.environment import illegible, say, settle
from flows.parser import parsed, parser
from storage.errors import Failed, Refused
from storage.store import StoreError, open_store


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``pipeline`` command."""
    settle()
    grammar = parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(grammar)
    given = sys.argv[1:] if argv is None else argv
    sys.exit(fail(wrong) if (wrong := illegible(given)) else _guarded(parsed(grammar, given)))


def _guarded(args: argparse.Namespace) -> int:
    """Run the command; whatever goes wrong is said in a line, and a traceback is for ``-v`` alone."""
    again = "run the same command again to go on from the last checkpoint"
    try:
        code = COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print(f"interrupted; {again}", file=sys.stderr)
        return 130
    except (Refused, Failed) as error:
        return fail(str(error), 2 if isinstance(error, (Refused, StoreError)) else 1)
    except OSError as error:
        if args.verbose > 0:
            raise
        return fail(_of_the_system(error), 1)
    except Exception as error:
        if args.verbose > 0:
            raise
        return fail(f"{type(error).__name__}: {error} (-v shows where)", 1)
    except BaseException as error:
        if type(error).__name__ != "TerminationSignal":  # Prefect's, which only a run has loaded
            raise
        print(f"told to end; {again}", file=sys.stderr)
        return 143
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if getattr(args, "json", False) and lost and lost.errno not in (errno.EPIPE, errno.EIO):
        return fail(f"the answer could not be written: {lost.strerror}", 1)
    return code


def _of_the_system(error: OSError) -> str:
    """An error of the operating system, with what to change."""
    from storage.places import home

    what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}; make room below {home()} (`pipeline gc --dry-run`), or set PIPELINE_HOME to a larger disk"
    below = str(error.filename or "").startswith(str(home()))
    if below or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}; PIPELINE_HOME names the folder to write to (now {home()})"
    return what


def fail(problems: list[str] | str, code: int = 2) -> int:
    """Print problems to stderr, one a line; gives the exit code."""
    for line in [problems] if isinstance(problems, str) else problems:
        print(f"error: {line}", file=sys.stderr)
    return code


def _asked(args: argparse.Namespace, here: bool = False) -> tuple[Any, Any] | int:
    """The config and its resolved inputs, or an exit code after all problems were printed."""
    from flows.dag import stage_names, trains
    from pipeline.config.tree import ConfigError
    from tasks.running.sources import asked

    problems = [
        f"{name}  no such stage; stages are {', '.join(stage_names())}"
        for name in [*args.refresh, args.until]
        if name and name not in stage_names()
    ]
    found = None
    try:
        found = asked(args.preset, args.overrides, here and trains(args.until))
    except ConfigError as error:
        problems += error.problems
    return fail(problems) if problems or found is None else found


def _run(args: argparse.Namespace) -> int:
    from flows.console import title

    out = title(args)
    found = _asked(args, here=True)
    if isinstance(found, int):
        return found
    from flows.runner import run
    from storage.places import home
    from tasks.running.sources import notes, withdrawn

    store = open_store(home() / "store")
    store.check()
    config, inputs = found
    if problems := withdrawn(inputs, store):
        return fail(problems)
    for line in notes(config, inputs):
        out.print(f"  {line}", style="yellow", markup=False)
    return run(args, out)


def _plan(args: argparse.Namespace) -> int:
    found = _asked(args)
    if isinstance(found, int):
        return found
    from flows.dag import full, trains
    from flows.inspect import print_plan
    from tasks.running.plan import PlanRun
    from tasks.running.sources import notes, undevised

    config, inputs = found
    plan = PlanRun("plan", config.resources, args.until, tuple(args.refresh), Path(args.preset).stem)
    with plan:
        full(config, inputs)
    told = None
    if args.price is not None:
        from flows.price import bill

        told = bill(plan.planned, config, args.price, args.gpu)
    remarks = [*notes(config, inputs), *(undevised(config) if trains(args.until) else ())]
    return print_plan(plan.planned, args.json, remarks, told)


def _sweep(args: argparse.Namespace) -> int:
    from flows.sweep import sweep

    return sweep(args)


def _config(args: argparse.Namespace) -> int:
    from flows.inspect import explain_config
    from pipeline.config.toml import written
    from pipeline.config.tree import ConfigError, load

    try:
        config = load(args.preset, args.overrides)
    except ConfigError as error:
        return fail(error.problems)
    if args.json:
        say(config.model_dump(mode="json"))
    else:
        print(explain_config(config) if args.explain else written(config, args.preset, args.overrides), end="\n")
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from flows.estimates import estimated, pretraining, written
    from pipeline.config.tree import ConfigError, load

    try:
        config = load(args.preset, args.overrides)
        plan = pretraining(config, args)
    except ConfigError as error:
        return fail(error.problems)
    except ValueError as error:
        return fail(str(error))
    if args.json:
        say(estimated(config, plan))
    else:
        print(written(config, plan))
    return 0


def _presets(args: argparse.Namespace) -> int:
    from pipeline.config.tree import about, presets

    for name in presets():
        print(f"{name:<16} {about(name)}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from flows.inspect import show

    return show(args.ref, args.json)


def _lineage(args: argparse.Namespace) -> int:
    if args.document:
        from flows.documents import trace

        return trace(args.document, args.ref, args.json)
    if args.ref is None:
        return fail("lineage  give a model, an artifact or a source, or --document ID_OR_TEXT")
    if args.source:
        from flows.documents import of_source

        return of_source(args.ref, args.source, args.limit, args.json)
    from flows.inspect import lineage

    return lineage(args.ref, args.down, args.json)


def _runs(args: argparse.Namespace) -> int:
    from flows.runs import print_runs

    return print_runs(args.json)


def _diff(args: argparse.Namespace) -> int:
    from flows.compare import diff

    return diff(args.first, args.second, args.json)


def _why(args: argparse.Namespace) -> int:
    from flows.compare import why

    return why(args.what, args.run, args.json)


def _pin(args: argparse.Namespace) -> int:
    from flows.runs import pin

    return pin(args.name, args.keep)


def _completion(args: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["pipeline"], shell=args.shell))
    return 0


def _chat(args: argparse.Namespace) -> int:
    from flows.chat import chat

    return chat(args)


def _serve(args: argparse.Namespace) -> int:
    from flows.serving.command import serve

    return serve(args)


def _quantize(args: argparse.Namespace) -> int:
    from flows.release import quantize

    return quantize(args)


def _prune(args: argparse.Namespace) -> int:
    from flows.release import prune

    return prune(args)


def _adopt(args: argparse.Namespace) -> int:
    from flows.curate import adopt

    preset, overrides = args.preset, args.overrides
    if preset and "=" in preset:  # adopt tiny pretrain.steps=10: the preset is the reference itself
        preset, overrides = None, [preset, *overrides]
    return adopt(args.ref, preset, overrides, args.force, args.dry_run)


def _invalidate(args: argparse.Namespace) -> int:
    from flows.curate import invalidate, undo

    return undo(args.what) if args.undo else invalidate(args.what, args.reason)


def _evaluate(args: argparse.Namespace) -> int:
    from flows.evaluate import evaluate

    return evaluate(args)


def _promote(args: argparse.Namespace) -> int:
    from flows.promote import command

    try:
        return command(args.model, args.rollback, args.dry_run, args.force)
    except LookupError as error:
        return fail(str(error.args[0]))


def _verify(args: argparse.Namespace) -> int:
    from flows.inspect import verify

    return verify(args.ref)


def _gc(args: argparse.Namespace) -> int:
    from flows.collect import collect

    return collect(args.keep, args.dry_run, args.shared, args.history)


def _services(args: argparse.Namespace) -> int:
    from flows.services import command

    return command(args)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "plan": _plan,
    "sweep": _sweep,
    "config": _config,
    "estimate": _estimate,
    "presets": _presets,
    "show": _show,
    "lineage": _lineage,
    "runs": _runs,
    "diff": _diff,
    "why": _why,
    "pin": _pin,
    "completion": _completion,
    "chat": _chat,
    "serve": _serve,
    "quantize": _quantize,
    "prune": _prune,
    "adopt": _adopt,
    "invalidate": _invalidate,
    "evaluate": _evaluate,
    "promote": _promote,
    "verify": _verify,
    "gc": _gc,
    "up": _services,
    "down": _services,
    "deploy": _services,
    "unpin": _pin,
}


if __name__ == "__main__":
    main()
