"""What many tests share: one pipeline home with its own Prefect server, and one finished run of the whole DAG in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stage_helpers import Player

ROOT = Path(__file__).parent.parent
os.environ.setdefault(
    "NUMBA_CACHE_DIR", str(ROOT / ".pytest_cache" / "numba")
)  # kernels are compiled once, not once for every home
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tests run side by side, and models this small only wait for each other on more threads
LONG = (
    "test_flows_full_pipeline",
    "test_tasks_cluster",
    "test_model_train",
    "test_deploy_compose",
    "test_readme",
    "test_model_faults",
)
"""Files that take minutes: they start first, so that no process waits for another at the end."""
MICRO = str(ROOT / "tests" / "micro.toml")


def pytest_collection_modifyitems(items):
    """The long files first, the others as they came."""
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


SECRETS = {
    name: f"planted-{i}-kXw9"
    for i, name in enumerate(
        (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "HF_TOKEN",
            "OPENAI_API_KEY",
            "PIPELINE_API_KEY",
            "PIPELINE_UPSTREAM_KEY",
            "MLFLOW_TRACKING_PASSWORD",
        )
    )
}
"""What a user's environment may hold and nothing below a home may (looked for after a whole run)."""


class Home:
    """A pipeline home of its own, and the command line in it, run in ``root``; ``more`` goes into its environment."""

    def __init__(self, path, root=ROOT, **more):
        self.path, self.root = path, root
        self.env = (
            {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
            | SECRETS
            | {"PIPELINE_HOME": str(path), "COLUMNS": "160"}
            | more
        )

    def command(self, *args):
        return [sys.executable, "-m", "flows.cli", *map(str, args)]

    def __call__(self, *args, code=0, timeout=600):
        """Run ``pipeline args…``; returns the finished process and checks its exit code."""
        done = subprocess.run(
            self.command(*args), cwd=self.root, env=self.env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == code, (
            f"pipeline {' '.join(map(str, args))} -> {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
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
    code = (
        "from pathlib import Path; from flows.services import ensure_prefect; import sys;"
        " print(ensure_prefect(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home.path)], cwd=ROOT, env=home.env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="session")
def lab(prefect_url, tmp_path_factory):
    """A second home, on the Prefect server of the first, with good and bad documents in ``lab.good`` and
    ``lab.bad``."""
    place = Home(tmp_path_factory.mktemp("lab"), PREFECT_API_URL=prefect_url)
    place.good, place.bad = place.path / "good.jsonl", place.path / "bad.jsonl"
    told = (
        "tells in plain words what a pipeline does with the text it is given. First the files are read, and every line"
        " that is broken is counted. Then repeated and empty documents leave, a tokenizer learns its vocabulary from"
        " what is left, and a small model is trained on it overnight."
    )
    lines = [json.dumps({"text": f"Document {i} {told}"}) for i in range(60)]
    place.good.write_text("\n".join(lines))
    place.bad.write_text("{not json\n" * 50)
    yield place
    place("down")


@pytest.fixture(scope="session")
def swept(lab):
    """A sweep over sources (one of them broken) and a rule of the clean stage, in the lab."""
    return json.loads(
        lab(
            "sweep",
            MICRO,
            f"ingest.sources={lab.good},{lab.bad}",
            "clean.max_spam_density=0.5,1000",
            "--until",
            "clean",
            "--metric",
            "clean.docs_out",
            "--json",
            code=1,
        ).stdout
    )


@pytest.fixture(scope="session")
def player(prefect_url, tmp_path_factory):
    """A function that runs the tiny stages of stage_helpers.py; ``player.another()`` starts a second process for
    them."""
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
