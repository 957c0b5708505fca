"""The main job as a user meets it: the whole pipeline on an empty home, again with everything cached, and again after
the server was stopped.

    python benchmarks/main_job.py [PRESET] [section.key=value …]

Prints wall seconds of each and of every stage, and the scores. Uses a home of its own, which it deletes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from flows.console import headline
from flows.runner import score_lines


def timed(*command: str, environment: dict[str, str]) -> tuple[float, str]:
    """Wall seconds and standard output of ``pipeline command…``. Raises CalledProcessError when it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - began, done.stdout


def main() -> None:
    """Run and print."""
    preset, overrides = (sys.argv[1:2] or ["tiny"])[0], sys.argv[2:]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PIPELINE_HOME": home}
        run = ["run", preset, *overrides, "--json"]
        try:
            cold, output = timed(*run, environment=environment)
            result: dict[str, Any] = json.loads(output)
            again, _ = timed(*run, environment=environment)
            timed("down", environment=environment)
            restart, _ = timed(*run, environment=environment)
        finally:
            timed("down", environment=environment)
    print(f"| {preset} | seconds |\n|---|---:|")
    for stage in result["stages"]:
        print(f"| {stage['name']}: {headline(stage['metrics'], stage['name'])} | {stage['seconds']:.1f} |")
    print(
        f"| **the first time, all included** | **{cold:.0f}** |\n| again, server up | {again:.1f} |\n| again, with the"
        f" server's start | {restart:.1f} |"
    )
    scores = next((stage["metrics"] for stage in result["stages"] if stage["name"] == "evaluate"), {})
    print("\n".join(["", *score_lines(scores)]))


if __name__ == "__main__":
    main()
