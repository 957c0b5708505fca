"""Services in the background, for real: Prefect server, MLflow server and a worker that runs a deployment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows import processes, services
from flows.automations import check, place
from flows.pools import make_pools
from flows.processes import ServiceError
from flows.services import ensure_mlflow, ensure_prefect
from storage.errors import Refused
from storage.files import write_json

ROOT = Path(__file__).resolve().parent.parent


def call(home: Path, code: str) -> str:
    """Run ``code`` with flows.services in a process of its own, as the command line does."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    text = f"import sys; from pathlib import Path; from flows.services import *; home = Path({str(home)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def told(home: Path) -> dict:
    return json.loads((home / "services.json").read_text())


def post(url: str, body: dict) -> list:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A root on which everything is up, while another program holds Prefect's usual port."""
    home = tmp_path_factory.mktemp("services")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server may have ended here just now
        with contextlib.suppress(OSError):  # somebody else may hold it already
            holder.bind(("127.0.0.1", services.PREFECT_PORT))
            holder.listen()
        try:
            printed = call(
                home, "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); up(home)"
            )  # as under `&`
            assert told(home)["prefect"]["url"] in printed and told(home)["mlflow"]["url"] in printed
            assert "gpu-pool" in printed and "waiting for the worker" in printed
            yield home
        finally:
            call(home, "down(home)")


def test_up_takes_a_free_port_and_is_found_again(home):
    entries = told(home)
    assert entries["prefect"]["port"] != services.PREFECT_PORT
    assert {"prefect", "mlflow", "worker cpu-pool"} <= set(entries)
    again = call(home, "print(ensure_prefect(home), ensure_mlflow(home))").split()
    assert again == [entries["prefect"]["url"] + "/api", entries["mlflow"]["url"]] and told(home) == entries


def test_the_page_asks_the_server_that_it_comes_from(home):
    url = told(home)["prefect"]["url"]
    with urllib.request.urlopen(f"{url}/ui-settings", timeout=30) as answer:
        assert json.load(answer)["api_url"] == f"{url}/api"


def test_all_deployments_are_there_and_prefect_marks_lost_runs(home):
    api = told(home)["prefect"]["url"] + "/api"
    found = post(f"{api}/deployments/filter", {})
    assert {d["name"]: (d["work_pool_name"], d["entrypoint"], d["parameters"]["preset"]) for d in found} == {
        "cpu": ("cpu-pool", "flows.full_pipeline.full_pipeline", "tiny"),
        "gpu": ("gpu-pool", "flows.full_pipeline.full_pipeline", "gpu"),
        "data": ("cpu-pool", "flows.full_pipeline.data_stages", "tiny"),
    }
    # A limit of a deployment is a lease: Prefect would end runs whose lease it could not renew.
    assert not any(d["global_concurrency_limit"] or str(ROOT) in json.dumps(d["pull_steps"]) for d in found)
    assert [a["name"] for a in post(f"{api}/automations/filter", {})] == [
        "full-pipeline: lost runs are Crashed",
        "full-pipeline: say that no worker takes a run of cpu-pool",
        "full-pipeline: say that no worker takes a run of gpu-pool",
    ]


def test_a_pool_takes_the_project_s_template_and_keeps_its_type(home):
    api = told(home)["prefect"]["url"] + "/api"
    with pytest.raises(Refused, match=r"of type process(.|\n)*prefect work-pool delete gpu-pool"):
        make_pools(api, "docker")
    processes.delete(api, "work_pools/gpu-pool")
    make_pools(api, "kubernetes")
    (pool,) = (p for p in post(f"{api}/work_pools/filter", {}) if p["name"] == "gpu-pool")
    assert pool["type"] == "kubernetes"
    assert pool["base_job_template"]["variables"]["properties"]["gpus"]["default"] == 1
    make_pools(api, "kubernetes")


def test_down_ends_all_that_was_started_and_nothing_else(home):
    entries = told(home)
    mine = {
        p.pid
        for entry in entries.values()
        for p in [psutil.Process(entry["pid"]), *psutil.Process(entry["pid"]).children(recursive=True)]
    }
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    reused = {
        "pid": other.pid,
        "started": psutil.Process(other.pid).create_time() - 1000,
        "log": "",
    }  # a number that went to another process
    write_json(home / "services.json", {**entries, "worker old": reused})
    try:
        printed = call(
            home, "import flows.processes as p; p.STOP_SECONDS = 1000; down(home)"
        )  # nothing has to be killed
        assert "stopped prefect" in printed and "worker old" not in printed
        assert len(mine) >= 3 and not [
            pid for pid in mine if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        ]
        assert other.poll() is None and told(home) == {}
        assert call(home, "down(home)") == "nothing to stop\n"
    finally:
        other.kill()
        other.wait()


def test_given_addresses_are_used_and_must_answer(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", nobody + "/api")
    with pytest.raises(ServiceError, match="PREFECT_API_URL"):
        ensure_prefect(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    with pytest.raises(ServiceError, match="MLFLOW_TRACKING_URI"):
        ensure_mlflow(tmp_path)
    assert not (tmp_path / "services.json").exists()


def test_who_is_to_be_told_is_checked_before_anything_starts_and_secrets_are_not_shown(tmp_path):
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "up",
        "--notify",
        "teams://",
        "--notify",
        "nonsense://user:secret@host",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PIPELINE_HOME": str(tmp_path / "none")}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "nonsense://host" in done.stderr and "secret" not in done.stderr
    assert not (tmp_path / "none").exists()
    check(["https://example.org/hook", "mailtos://user:password@example.org?to=a@example.org"])
    assert place("https://hooks.slack.com/services/T0/B0/secret") == "https://hooks.slack.com"


def test_a_server_that_dies_is_reported_with_its_log(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(
        services,
        "_mlflow",
        lambda port, log: ([sys.executable, "-c", "raise SystemExit('the database is from the future')"], {}),
    )
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"(?s)ended while starting.*from the future"):
        ensure_mlflow(tmp_path)
    assert time.monotonic() - began < processes.START_SECONDS


SERVER = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A stand-in for MLflow's server that starts at once; a root to start it below."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(services, "_mlflow", lambda port, log: ([sys.executable, "-c", SERVER, str(port)], {}))
    root = tmp_path / "root"
    yield root
    for home in (root, *tmp_path.glob("root-*")):
        services.down(home)


def test_a_stranger_that_takes_the_port_while_a_server_starts_is_not_taken_for_it(small, monkeypatch):
    strangers, spawn = [], processes._spawn

    def late(start, port, log, mark):
        if not strangers:
            strangers.append(subprocess.Popen([sys.executable, "-c", SERVER, str(port)]))
            while not processes.answers(f"http://127.0.0.1:{port}/health"):
                time.sleep(0.05)
        return spawn(start, port, log, mark)

    monkeypatch.setattr(processes, "_spawn", late)
    try:
        url = ensure_mlflow(small)
        entry = told(small)["mlflow"]
        assert url == entry["url"] and entry["pid"] != strangers[0].pid and processes._listens(entry)
        assert strangers[0].poll() is None
    finally:
        strangers[0].kill()
        strangers[0].wait()


def test_a_server_keeps_its_port_and_a_copied_home_gets_servers_of_its_own(small):
    url = ensure_mlflow(small)
    services.down(small)
    assert ensure_mlflow(small) == url
    copy = small.with_name("root-copy")
    shutil.copytree(small, copy)
    assert ensure_mlflow(copy) != url
    services.down(copy)
    assert processes.answers(f"{url}/health"), "the original's servers are its own"
    moved = small.with_name("root-moved")
    small.rename(moved)
    pid = told(moved)["mlflow"]["pid"]
    ensure_mlflow(moved)
    assert told(moved)["mlflow"]["pid"] != pid and not processes.alive({"pid": pid, "started": time.time()})
