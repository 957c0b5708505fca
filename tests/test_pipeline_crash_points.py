"""A stage that is killed at a file operation, or whose disk is full from there on, makes the same artifact when it is
run again, and leaves nothing behind: benchmarks/crash_points.py at some of the points."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STAGES = 11
"""Ten of data, and a training."""


def test_a_stage_killed_or_out_of_disk_at_any_point_makes_the_same_artifact_when_run_again(tmp_path):
    command = [sys.executable, "benchmarks/crash_points.py", "--every", "23", "--scratch", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[1:2] in (["kill"], ["full"])]
    assert len(rows) == 2 * STAGES and sum(int(row[2]) for row in rows) > 40 and {row[3] for row in rows} == {"0"}
