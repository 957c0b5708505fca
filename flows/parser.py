"""The grammar of ``pipeline``: its commands, their arguments, and the examples that teach them."""

from __future__ import annotations

import argparse

from flows.grammar import AddCommand, completed_by, names
from flows.pools import TYPES
from flows.release_options import releasing
from flows.serving.options import serving, talking
from model.running.devices import GPUS

EPILOG = """\
examples:
  pipeline run tiny                                   the demo: everything, on this machine
  pipeline run tiny pretrain.steps=200 --until pretrain
  pipeline run gpt-teacher ingest.sources=my.jsonl sft.sources=my.jsonl
  pipeline plan tiny pretrain.optim.lr=1e-3           what would run, and why; runs nothing
  pipeline run tiny --refresh sft                     build one stage again
  pipeline chat tiny --prompt "What is MinHash?"
  pipeline serve tiny                                 an OpenAI API and a chat page
  pipeline lineage tiny                               what the newest model was made from
  pipeline config tiny --explain                      every option with its meaning, type and range
  eval "$(pipeline completion bash)"                  complete commands, presets, stages and options with Tab

`pipeline COMMAND --help` has more examples. Everything is written below .pipeline/ (or PIPELINE_HOME).
"""


def parsed(parser: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace:
    """Arguments in any order: overrides may stand behind options, and before the preset."""
    args, late = parser.parse_known_args(given)
    unknown = [text for text in late if text.startswith("-")]
    if unknown or (late and not hasattr(args, "overrides")):
        args.parser.error(f"unrecognized arguments: {' '.join(unknown or late)}")
    if late and args.preset is None:  # adopt's may be left out
        args.preset = late.pop(0)
    if hasattr(args, "overrides"):
        words = [*([args.preset] if args.preset else []), *args.overrides, *late]
        first = next((i for i, word in enumerate(words) if "=" not in word), 0)
        args.preset = words.pop(first) if args.preset else None
        args.overrides = words
    return args


class _Version(argparse.Action):
    """``--version``: the project's and those of what decides how it runs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        def of(package: str) -> str:
            try:
                return version(package)
            except PackageNotFoundError:
                return "not installed"

        told = ", ".join(f"{name} {of(name)}" for name in ("torch", "prefect", "mlflow"))
        print(f"full-pipeline {_own_version()} (Python {platform.python_version()}, {told})")
        parser.exit()


def _own_version() -> str:
    import tomllib

    from storage.places import ROOT

    try:
        return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    except OSError:
        from importlib.metadata import version

        return version("full-pipeline")


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="pipeline",
        description="Raw text in, an aligned, evaluated, exported language model out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    loud = argparse.ArgumentParser(add_help=False)
    loud.add_argument("-v", "--verbose", action="store_const", const=1, default=0, help="every metric; tracebacks")
    loud.add_argument(
        "-q", "--quiet", dest="verbose", action="store_const", const=-1, help="only results, losses and failures"
    )
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str, examples: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[loud],
        )
        sub.set_defaults(command=name, parser=sub)
        return sub

    _run_commands(command)
    _config_commands(command)
    _artifact_commands(command)
    _service_commands(command)
    sub = command("completion", "print the shell's completion script", '  eval "$(pipeline completion bash)"')
    sub.add_argument("shell", choices=("bash", "zsh", "fish"))
    return whole


def _service_commands(command: AddCommand) -> None:
    """The commands for what runs beside the pipeline."""
    up = command(
        "up",
        "start the Prefect server, MLflow and workers on this machine, and deploy the flow",
        "  pipeline up\n  pipeline up --notify https://hooks.slack.com/services/T0/B0/XX",
    )
    deploy = command("deploy", "bring work pools, deployments and automations to the Prefect server of PREFECT_API_URL")
    deploy.add_argument(
        "--gpu-pool",
        choices=TYPES,
        help="the type of worker that serves gpu-pool: processes on a machine with a GPU (usual), containers, or pods;"
        " gives a pool that is there the job template of deploy/pools",
    )
    for sub in (up, deploy):
        sub.add_argument(
            "--notify",
            action="append",
            metavar="URL",
            help="tell of failures, stuck runs and new champions: a webhook, Slack's, mailtos://USER:PASSWORD@HOST?to=…,"
            " or `none`; repeat for several; PIPELINE_NOTIFY holds them too, apart by spaces",
        )
    command("down", "stop what `up` or a run started")


def _preset(
    sub: argparse.ArgumentParser,
    metavar: str = "section.key=value",
    nargs: str | None = None,
) -> None:
    """The arguments that name a config."""
    text = "a preset's name (see `pipeline presets`) or a .toml file"
    completed_by(sub.add_argument("preset", help=text, nargs=nargs), names("presets"))
    overrides = sub.add_argument(
        "overrides", nargs="*", metavar=metavar, help="config overrides, e.g. pretrain.optim.lr=1e-3; in any place"
    )
    completed_by(overrides, names("options"))


def _run_commands(command: AddCommand) -> None:
    """The commands that run the flow or say what it would do; ``command(name, text, examples)`` adds one."""
    for name, text, examples in (
        (
            "run",
            "run the pipeline; what is cached is not done again",
            "  pipeline run tiny\n"
            "  pipeline run tiny ingest.sources=corpus/*.jsonl.gz,books/    your own text\n"
            "  pipeline run tiny --until encode clean.min_width=40\n"
            "  pipeline run mine.toml                                       a preset of your own",
        ),
        (
            "plan",
            "say what a run would do and why, without running anything",
            "  pipeline plan tiny\n  pipeline plan tiny pretrain.optim.lr=1e-3 --json\n"
            "  pipeline plan gpt2-124m --price 2.49 --gpu h100              what its GPU time costs",
        ),
    ):
        sub = command(name, text, examples)
        _preset(sub)
        until = sub.add_argument("--until", metavar="STAGE", help="stop after this stage")
        again = sub.add_argument(
            "--refresh", metavar="STAGE", action="append", default=[], help="build this stage again (repeatable)"
        )
        for action in (until, again):
            completed_by(action, names("stages"))
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    sub.add_argument("--price", type=float, metavar="P", help="also say what the GPU stages cost at P for a GPU hour")
    sub.add_argument(
        "--gpu",
        choices=tuple(GPUS),
        metavar="NAME",
        default="h200",
        help=f"with --price: {', '.join(GPUS)} (default h200)",
    )

    sub = command(
        "sweep",
        "run every combination of some values and compare one number",
        "  pipeline sweep tiny pretrain.optim.lr=3e-3,6e-3 --until pretrain",
    )
    _preset(sub, "section.key=value,value")
    until = sub.add_argument("--until", metavar="STAGE", help="stop every child after this stage")
    completed_by(until, names("stages"))
    sub.add_argument(
        "--metric",
        metavar="STAGE.NUMBER",
        help="the number to sort by (default: held-out loss of the last swept training stage)",
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _config_commands(command: AddCommand) -> None:
    """The commands that look at a config alone."""
    sub = command(
        "config",
        "print a preset's whole config as TOML that `run` takes, or what every option means",
        "  pipeline config tiny pretrain.steps=400 > mine.toml && pipeline run mine.toml\n"
        "  pipeline config tiny --explain | grep optim",
    )
    _preset(sub)
    sub.add_argument("--explain", action="store_true", help="every option with its meaning, type, range and value")
    sub.add_argument("--json", action="store_true", help="print JSON and not TOML")

    sub = command(
        "estimate",
        "calculate memory and time of a preset's training on GPUs (without any) or on this machine's CPU",
    )
    _preset(sub)
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
    command("presets", "list the presets")


def _artifact_commands(command: AddCommand) -> None:
    """The commands on runs and on what they left behind; ``command(name, text, examples)`` adds one."""
    sub = command("runs", "list the runs: what was asked for, how it ended, scores, and what is pinned")
    sub.add_argument("--json", action="store_true")
    sub = command(
        "diff",
        "say what differs between two runs in config, code, data and scores, first cause first",
        "  pipeline diff tiny                       the preset's newest run and the one before it\n"
        "  pipeline diff 20260131-1200 20260201-09  two runs, by id or its beginning (see `pipeline runs`)",
    )
    sub.add_argument("first", metavar="RUN_A", help="a run's id or its beginning, or a preset's name")
    sub.add_argument(
        "second", metavar="RUN_B", nargs="?", help="what to compare it with; default: RUN_A with the one before it"
    )
    sub.add_argument("--json", action="store_true")
    sub = command(
        "why",
        "say why a stage ran, back to the option, file or code that changed",
        "  pipeline why sft                         in the newest run that has it\n"
        "  pipeline why sft --run 20260131-1200\n  pipeline why sft/3fa9",
    )
    sub.add_argument("what", metavar="STAGE", help="a stage, or an artifact as stage/key").completer = names("stages")  # type: ignore[attr-defined]
    sub.add_argument("--run", metavar="RUN", help="the run to look at (default: the newest with this stage)")
    sub.add_argument("--json", action="store_true")
    for name, keep, text in (
        ("pin", True, "keep what a run made from `gc`"),
        ("unpin", False, "let `gc` delete what a run made"),
    ):
        sub = command(name, text, f"  pipeline {name} tiny\n  pipeline {name} 20260131-1200")
        sub.add_argument(
            "name", metavar="RUN", help="a run's id or its beginning (see `pipeline runs`), or a preset's name"
        )
        sub.set_defaults(keep=keep)
    _look_commands(command)
    _model_commands(command)
    _curate_commands(command)


def _look_commands(command: AddCommand) -> None:
    """The commands that show an artifact and where it came from."""
    sub = command("show", "show an artifact: what it is, what made it, its files")
    sub.add_argument(
        "ref",
        help="a preset's name or a run's id (its model), stage, stage/key or the start of a digest, e.g. pretrain/3fa9",
    )
    sub.add_argument("--json", action="store_true")
    sub = command(
        "lineage",
        "print what a model (or any artifact) was made from, or with --down what was made from it",
        "  pipeline lineage tiny\n"
        "  pipeline lineage books/one.txt --down               every artifact and model that a file went into\n"
        '  pipeline lineage --document "a sentence of it"       which models learnt from a document\n'
        "  pipeline lineage tiny --source teaching             the documents of a source that the model read",
    )
    sub.add_argument(
        "ref",
        nargs="?",
        help="a preset's name (its newest model), a stage, stage/key, or with --down a source's or a file's name",
    )
    sub.add_argument("--document", metavar="ID_OR_TEXT", help="find one document, by its id or a piece of its text")
    sub.add_argument("--source", metavar="NAME", help="list the documents of this source that went into it")
    sub.add_argument("--limit", type=int, default=20, metavar="N", help="with --source: most documents shown (0: all)")
    sub.add_argument(
        "--down", action="store_true", help="go the other way: everything made from this artifact or source"
    )
    sub.add_argument("--json", action="store_true")


def _model_commands(command: AddCommand) -> None:
    """The commands on a finished model: talk, serve, prune, round, score."""
    sub = command(
        "chat",
        "talk to a model",
        '  pipeline chat tiny\n  pipeline chat tiny --prompt "What is MinHash?"\n'
        '  pipeline chat dpo/3fa9 --temperature 0.7 --top-p 0.9 --system "You answer in one sentence."',
    )
    model = sub.add_argument(
        "model",
        help="a preset's name (its newest whole run), a run's id, a reference like dpo/3fa9, or a model directory",
    )
    completed_by(model, names("presets"))
    sub.add_argument("--prompt", help="answer this one prompt; standard output is the answer and nothing else")
    talking(sub)
    sub.add_argument("--compare", metavar="OTHER", help="another model, which answers the same below the first")
    sub.add_argument("--force", action="store_true", help="also when the model was withdrawn")
    serving(command, names("presets"))
    releasing(command, names("presets"))
    sub = command(
        "evaluate",
        "score models on exams: C-Eval, CMMLU, MMLU, ARC, HellaSwag, PIQA, OpenBookQA, GSM8K, BLiMP, or your own",
        "  pipeline evaluate tiny --exams cmmlu/ --shots 5\n"
        "  pipeline evaluate sft/3fa9 dpo/81c2 --exams blimp/ arc:questions.jsonl     each against the one before\n"
        "  pipeline evaluate ./Qwen3-0.6B --exams mmlu/ --limit 20 --out items.jsonl",
    )
    sub.add_argument("models", nargs="+", metavar="MODEL", help="a preset's name, a reference, or a model folder")
    sub.add_argument("--exams", nargs="+", required=True, metavar="PATH", help="files or folders, as evaluate.exams")
    sub.add_argument("--shots", type=int, default=-1, help="few-shot examples (default: as the exam is usually shown)")
    sub.add_argument("--limit", type=int, default=0, help="questions of each subject, the first ones; 0 asks all")
    sub.add_argument("--out", metavar="FILE", help="also write every item with what was given as JSON lines")
    sub.add_argument("--batch", type=int, default=32, help="answers generated at once (default 32)")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    sub.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"))
    sub.add_argument("--refresh", action="store_true", help="ask again although it is cached")
    sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    sub = command(
        "promote",
        "list the champions, make a model its preset's champion, or go back to the one before",
        "  pipeline promote                       champions and every decision about them\n"
        "  pipeline promote tiny --dry-run        would the newest run's model pass the gate?\n"
        "  pipeline promote dpo/3fa9 --force      by hand, whatever the gate says\n"
        "  pipeline promote tiny --rollback",
    )
    sub.add_argument("model", nargs="?", help="a preset's name (its newest run's last model), a run's id, or stage/key")
    sub.add_argument("--rollback", action="store_true", help="the champion before the present one is it again")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be decided")
    sub.add_argument("--force", action="store_true", help="also when the gate does not hold")


def _curate_commands(command: AddCommand) -> None:
    """The commands that take over, withdraw, check and delete what the store holds."""
    sub = command("adopt", "accept an artifact made by older code as what today's code would make")
    sub.add_argument("ref", help="stage/key of an artifact, or a preset: all that earlier code made for a run of it")
    _preset(sub, nargs="?")
    sub.add_argument("--force", action="store_true", help="also when the stage's section or version differs")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be adopted")
    sub = command("invalidate", "withdraw a source or an artifact and everything made from it")
    sub.add_argument("what", metavar="SOURCE_OR_REF", help="a source's name or digest, or stage/key")
    sub.add_argument("--reason", help="why; shown wherever a withdrawn artifact is asked for")
    sub.add_argument("--undo", action="store_true", help="take the withdrawal back")
    sub = command("verify", "hash every file of every artifact again and set damaged ones aside")
    sub.add_argument("ref", nargs="?", help="only this artifact or stage")
    sub = command(
        "gc",
        "delete artifacts that no kept run and no champion reaches",
        "  pipeline gc --dry-run\n  pipeline gc --keep 20 --history    the runs too, in MLflow and Prefect",
    )
    sub.add_argument("--keep", type=int, default=5, metavar="N", help="runs to keep, newest first (default 5)")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    sub.add_argument(
        "--shared", action="store_true", help="also from the bucket (PIPELINE_STORE), by the runs of all machines"
    )
    sub.add_argument(
        "--history",
        action="store_true",
        help="also forget the runs of whose making nothing stays, in MLflow and Prefect",
    )
