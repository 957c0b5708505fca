"""What many tests share: one pipeline home with its own Prefect server, and one finished run of the whole DAG in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stage_helpers import Player

ROOT = Path(__file__).parent.parent
MICRO = str(ROOT / "tests" / "micro.toml")


class Home:
    """A pipeline home of its own, and the command line in it."""

    def __init__(self, path):
        self.path = path
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))} | {"PIPELINE_HOME": str(path), "COLUMNS": "160"}

    def command(self, *args):
        return [sys.executable, "-m", "flows.cli", *map(str, args)]

    def __call__(self, *args, code=0, timeout=600):
        """Run ``pipeline args…``; returns the finished process and checks its exit code."""
        done = subprocess.run(self.command(*args), cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == code, f"pipeline {' '.join(map(str, args))} -> {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def run(self, *args, timeout=600):
        """``pipeline run micro … --json``, parsed; the stages also by name under ``by``."""
        result = json.loads(self("run", MICRO, *args, "--json", timeout=timeout).stdout)
        result["by"] = {s["name"]: s for s in result["stages"]}
        return result


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    place = Home(tmp_path_factory.mktemp("home"))
    yield place
    place("down")


@pytest.fixture(scope="session")
def prefect_url(home):
    """The address of the Prefect server of ``home``."""
    code = "from pathlib import Path; from flows.services import ensure_prefect; import sys; print(ensure_prefect(Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(home.path)], cwd=ROOT, env=home.env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="session")
def player(prefect_url, tmp_path_factory):
    """A function that runs the tiny stages of stage_helpers.py; ``player.another()`` starts a second process for them."""
    place = tmp_path_factory.mktemp("players")
    players = []

    def another():
        players.append(Player(prefect_url, place / str(len(players))))
        return players[-1]

    first = another()
    first.another = another
    yield first
    for each in players:
        each.close()


@pytest.fixture(scope="session")
def first(home):
    """The first run of the whole DAG at micro size."""
    return home.run()
