"""Kill -9 whoever works, again and again, and look at what is left: no process, no artifact that verifies wrong, no run
that Prefect shows as Running for ever, no lost metric, and at the end the digests of an undisturbed run.

    python benchmarks/chaos.py training [--kills 100] [--minutes 9] [--scratch DIR]
    python benchmarks/chaos.py cluster  [--kills 20] …
    python benchmarks/chaos.py pipeline [--kills 200] [--preset FILE] …

``training``: one small training of two ranks is killed in one of its processes (flow, guard, launcher, rank), before
its first step or some steps after it resumed, until it may end. ``cluster``: the same on two Ray nodes, whose machines
are killed too.

``pipeline``: runs of a preset (benchmarks/nano.toml) in a home with Prefect and MLflow servers and a bucket on an S3
server of its own. Somebody is killed at a random moment of a random stage: flow, tracker, guard, launcher, rank, data
worker, and the three servers, in turn.

With ``--scratch`` the kills are kept there, and the next call goes on from them: a call ends after ``--minutes``. Linux
only: processes are told by PIPELINE_HOME in their environment. Ends with exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from chaos_helpers import ROOT, Book, processes

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
KILLS = {"training": 100, "cluster": 20, "pipeline": 200}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(KILLS))
    parser.add_argument("--kills", type=int, help=f"{KILLS}")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, help="of the moments and victims; another one at each call by default")
    parser.add_argument("--preset", default=str(ROOT / "benchmarks" / "nano.toml"))
    parser.add_argument("--scratch", type=Path, help="kept, and gone on from")
    options = parser.parse_args()
    scratch = Path(options.scratch or tempfile.mkdtemp(prefix="chaos-")).resolve() / options.what
    scratch.mkdir(parents=True, exist_ok=True)
    book = Book(scratch / "kills.jsonl", options.kills or KILLS[options.what], options.minutes)
    rng = random.Random(options.seed)
    try:
        if options.what == "pipeline":
            from chaos_pipeline import pipeline

            pipeline(book, scratch, rng, options.preset)
        else:
            from chaos_training import training

            training(book, scratch, rng, options.what == "cluster")
        return book.report()
    finally:
        for pid in processes(scratch / "home"):
            os.kill(pid, 9)
        if not options.scratch:
            shutil.rmtree(scratch.parent, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
