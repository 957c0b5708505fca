"""Three tiny stages in a real Prefect flow, for tests of what a stage is wrapped in. Run by :func:`play` in a process
of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from pydantic import Field

from pipeline.config.base import Section
from pipeline.config.resources import Resources
from pipeline.sources import Source
from storage.digest import sha256_json
from tasks.running.adopt import AdoptRun, adopt
from tasks.running.plan import PlanRun
from tasks.running.prefect_run import PrefectRun
from tasks.running.sources import SourceSet
from tasks.running.stage import stage

ROOT = Path(__file__).parent.parent


class WordSection(Section):
    """What the tiny stages read."""

    word: str = Field("word")
    fail: bool = Field(False)


def _build(name, cfg, out):
    with open(os.environ["BUILDS"], "a") as log:
        log.write(f"{name} {os.getpid()}\n")
    time.sleep(float(os.environ.get("SLOW", 0)))
    (out / "_run" / "note.json").write_text("{}")
    (out / "_run" / "checkpoints").mkdir()
    (out / "_run" / "checkpoints" / "big.bin").write_bytes(b"0" * 1000)
    if cfg.fail:
        raise ValueError(f"{name} was told to fail")
    (out / "sub").mkdir(exist_ok=True)
    (out / "sub" / "word.txt").write_text(cfg.word)
    return {"letters": len(cfg.word)}


def first(cfg, source, *, on, out, report):
    """Read the source."""
    return _build("first", cfg, out)


def second(cfg, before, *, on, out, report):
    """Work on what the first made."""
    assert (before.path / "sub" / "word.txt").is_file()
    return _build("second", cfg, out)


def third(cfg, before, *, on, out, report):
    """Work on what the second made."""
    return _build("third", cfg, out)


first, second = (stage(version=1, kind="documents")(fn) for fn in (first, second))
third = stage(version=1, kind="model")(third)


def chain(cfgs, digest):
    """The DAG: first, then second and third beside each other."""
    a = first(cfgs["first"], SourceSet("text", (Source("web", digest, ()),)))
    b, c = second.submit(cfgs["second"], a), third.submit(cfgs["third"], a)
    return b.result(), c.result()


def main(options):
    """Run the DAG (or plan it) and print what came out as JSON."""
    cfgs = {name: WordSection(**options.get(name, {})) for name in ("first", "second", "third")}
    digest = sha256_json(options.get("source", "web-1"))
    if options.get("plan"):
        plan = (AdoptRun if options.get("adopt_all") else PlanRun)("plan", Resources(), options.get("until"))
        with plan:
            chain(cfgs, digest)
        if options.get("adopt_all"):
            return [adopt(plan.store, record, planned).stage for planned, record in plan.taken]
        if options.get("adopt"):
            record = plan.store.find(options["adopt"])[0]
            return adopt(
                plan.store,
                record,
                next(p for p in plan.planned if p.stage == record["stage"]),
                options.get("force", False),
            ).key
        return [[p.stage, p.state, p.reasons, p.key] for p in plan.planned]
    from prefect import flow

    lines = []

    @flow(name="tiny-stages")
    def tiny():
        run = PrefectRun(
            f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            Resources(),
            options.get("until"),
            tuple(options.get("refresh", [])),
        )
        run.listeners.append(lambda event: lines.append(event["text"]) if event["event"] == "note" else None)
        run.store.check()
        run.open()
        with run:
            chain(cfgs, digest)
        run.settle()
        return run

    run = tiny()
    return {
        "stages": {name: [e["state"], e["key"], e["digest"]] for name, e in run.stages.items()},
        "notes": lines,
        "run": run.id,
    }


def serve():
    """Answer each line ``[environment, options]`` on stdin with one line: what :func:`main` gives, or the error."""
    import prefect  # noqa: F401 - what a run needs is loaded before the first is asked for

    answers, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        environment, options = json.loads(line)
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            answer = main(options)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.environ.clear()
        os.environ.update(before)
        print(json.dumps(answer), file=answers, flush=True)


class Player:
    """A process that plays the tiny DAG, run after run; ``place`` is the pipeline home of each run."""

    def __init__(self, prefect_url, scratch):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "PIPELINE_"))}
        environment |= {
            "PREFECT_API_URL": prefect_url,
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_HOME": str(scratch),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tests.stage_helpers import serve; serve()"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, place, env=None, **options):
        """Begin a run; :meth:`finish` waits for it."""
        environment = {"PIPELINE_HOME": str(place), "BUILDS": str(place) + ".builds", **(env or {})}
        self.process.stdin.write(json.dumps([environment, options]) + "\n")
        self.process.stdin.flush()

    def finish(self):
        return json.loads(self.process.stdout.readline())

    def __call__(self, place, env=None, **options):
        """One run (or plan) from start to end."""
        self.start(place, env, **options)
        return self.finish()

    def close(self):
        self.process.kill()
        self.process.communicate()


def states(result):
    return {name: entry[0] for name, entry in result["stages"].items()}


def built(place):
    """Names of the stages that were really built, in order."""
    path = Path(str(place) + ".builds")
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
