"""docker-compose.yml without containers: the commands of its services as they stand, with their secrets as files, on a
real Postgres and a real S3 server; a deployment run goes through all of it, on two machines that share the bucket."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from conftest import MICRO

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1:]
pytestmark = pytest.mark.skipif(not POSTGRES, reason="no Postgres server on this machine (.ci/run installs one)")


def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url, body=None, login=None):
    """The status of a server's answer, and what it says: JSON, or text."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            said, json_ = answer.read(), "json" in answer.headers.get("Content-Type", "")
            return answer.status, json.loads(said) if json_ else said.decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Services:
    """The services of docker-compose.yml as processes of this machine, below ``root``."""

    def __init__(self, root):
        self.root, self.processes, self.stop_postgres = root, [], lambda: None
        self.ports = {name: free() for name in ("postgres:5432", "s3:8333", "prefect:4200", "mlflow:5000")}
        self.deploy = root / "deploy"
        shutil.copytree(ROOT / "deploy", self.deploy, ignore=shutil.ignore_patterns("secrets"))
        subprocess.run(["sh", str(self.deploy / "make_secrets.sh")], check=True, capture_output=True)
        ini = self.deploy / "mlflow_auth.ini"
        ini.write_text(self.here(ini.read_text()))

    def here(self, text):
        """A value of the compose file, for this machine: hosts, ports, settings by their defaults."""
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))
        for name, port in self.ports.items():
            text = text.replace(name, f"127.0.0.1:{port}")
        return text.replace("deploy/mlflow_auth.ini", str(self.deploy / "mlflow_auth.ini")).replace(
            "0.0.0.0", "127.0.0.1"
        )

    def secret(self, name):
        return (self.deploy / "secrets" / name).read_text()

    def url(self, name):
        return next(f"http://127.0.0.1:{port}" for key, port in self.ports.items() if key.startswith(f"{name}:"))

    def command(self, name, *words):
        """The command of a service (or ``words``), behind the entrypoint of its image."""
        own = {key.partition(":")[2]: str(port) for key, port in self.ports.items() if key.startswith(f"{name}:")}
        words = words or [own.get(word, self.here(word)) for word in COMPOSE["services"][name]["command"]]
        programs = {"python": [sys.executable], "pipeline": [sys.executable, "-m", "flows.cli"]}
        programs |= {program: [sys.executable, "-m", program] for program in ("prefect", "mlflow")}
        return ["sh", str(ROOT / "deploy" / "entrypoint.sh"), *programs[words[0]], *words[1:]]

    def environment(self, name, **more):
        """What a service is given: its settings, and the folder of its secrets."""
        service, folder = COMPOSE["services"][name], self.root / "secrets" / name
        folder.mkdir(parents=True, exist_ok=True)
        for secret in service["secrets"]:
            shutil.copy(self.deploy / "secrets" / secret["source"], folder / secret["target"])
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "AWS_", "PIPELINE_", "PG"))
        }
        given = {key: self.here(value) for key, value in service["environment"].items()}
        (self.root / name).mkdir(exist_ok=True)
        home = {"PREFECT_HOME": str(self.root / name / "prefect"), "PIPELINE_HOME": str(self.root / name)}
        image = {
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        return {**kept, **image, **home, **given, "SECRETS": str(folder), "PYTHONPATH": str(ROOT), **more}

    def start(self, name, command=None, root=ROOT, **more):
        log = open(self.root / f"{name}.log", "wb")  # noqa: SIM115 - as long as the process
        environment = self.environment(name, **more) if "secrets" in COMPOSE["services"][name] and not command else None
        process = subprocess.Popen(
            command or self.command(name), cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        self.processes.append(process)
        return process

    def once(self, name, *words):
        """Run a service that ends by itself; what it printed."""
        done = subprocess.run(
            self.command(name, *words), cwd=ROOT, env=self.environment(name), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{name}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def wait(self, *names):
        """Until services answer at their health addresses, as compose waits."""
        for name in names:
            test = COMPOSE["services"][name]["healthcheck"]["test"][-1]
            port = next(port for key, port in self.ports.items() if key.startswith(f"{name}:"))
            path = re.search(r"http://127.0.0.1:\d+([/\w]+)", test)[1]
            deadline = time.monotonic() + 180
            while True:
                with contextlib.suppress(OSError):
                    if call(f"http://127.0.0.1:{port}{path}")[0] == 200:
                        break
                log = (self.root / f"{name}.log").read_text()
                assert time.monotonic() < deadline and self.processes, f"{name} does not answer\n{log[-3000:]}"
                time.sleep(0.2)

    def postgres(self):
        """A cluster of its own with the databases of databases.sql; its folder belongs to a user that may run it."""
        place, bin = self.root / "postgres", POSTGRES[0].parent
        place.mkdir()
        user = {"user": "postgres"} if os.getuid() == 0 else {}
        password = Path(shutil.copy(self.deploy / "secrets" / "postgres", place / "password"))
        if user:
            shutil.chown(place, "postgres")
        run = {"check": True, "capture_output": True, "cwd": place, **user}
        options = [
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(password),
            "--no-sync",
        ]
        subprocess.run([str(bin / "initdb"), "-D", str(place / "data"), *options], **run)
        port = self.ports["postgres:5432"]
        quick = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {place}"
        subprocess.run(
            [str(bin / "pg_ctl"), "-D", str(place / "data"), "-l", str(place / "log"), "-w", "-o", quick, "start"],
            **run,
        )
        self.pg = {
            **os.environ,
            "PGPASSWORD": self.secret("postgres"),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port),
            "PGUSER": "postgres",
        }
        subprocess.run(
            ["psql", "-q", "-f", str(ROOT / "deploy" / "databases.sql")], env=self.pg, check=True, capture_output=True
        )
        self.stop_postgres = lambda: subprocess.run(
            [str(bin / "pg_ctl"), "-D", str(place / "data"), "-m", "immediate", "stop"], **{**run, "check": False}
        )

    def sql(self, database, query):
        return subprocess.run(
            ["psql", "-At", database, "-c", query], env=self.pg, capture_output=True, text=True
        ).stdout.strip()

    def close(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.stop_postgres()


class Receiver:
    """A server that keeps what is posted to it."""

    def __init__(self):
        self.got = got = []

        class Keep(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keep)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, about, part="text"):
        """The first message with a ``part`` that tells of something: "text" of a webhook, "message" of Apprise."""
        end = time.monotonic() + 60
        while not (found := [message for message in self.got if about in message.get(part, "")]):
            assert time.monotonic() < end, f"nobody was told of {about}: {self.got}"
            time.sleep(0.2)
        return found[0]


@pytest.fixture(scope="module")
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()


@pytest.fixture(scope="module")
def services(receiver):
    root = Path(tempfile.mkdtemp(prefix="compose-"))
    root.chmod(0o755)  # the user that runs Postgres has to reach its folder in it
    services = Services(root)
    try:
        services.postgres()
        s3 = services.ports["s3:8333"]
        services.start("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3)])
        soon = {f"PREFECT_SERVER_SERVICES_LATE_RUNS_{name}_SECONDS": "1" for name in ("AFTER", "LOOP")}
        services.start("prefect", **soon)
        services.start("mlflow")
        while socket.socket().connect_ex(("127.0.0.1", s3)):
            time.sleep(0.1)
        assert "created s3://pipeline" in services.once("buckets")
        services.wait("prefect")
        notify = services.deploy / "secrets" / "notify"
        notify.write_text(f"{receiver.url} {receiver.url.replace('http:', 'json:')}")  # a webhook, and Apprise
        services.deployed = services.once("deploy")
        services.wait("mlflow")
        second = root / "second-machine"  # its checkout lies elsewhere
        for package in ("flows", "tasks", "pipeline", "model", "storage"):
            shutil.copytree(ROOT / package, second / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", second)
        services.start("worker-cpu", PREFECT_WORKER_WEBSERVER_PORT=str(free()))
        services.second = lambda: services.start(
            "worker-gpu", root=second, PREFECT_WORKER_WEBSERVER_PORT=str(free()), PYTHONPATH=str(second)
        )
        yield services
    finally:
        services.close()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def prefect(services):
    """Calls of Prefect's API with the password that is in a file."""
    return lambda path, body=None: call(f"{services.url('prefect')}/api/{path}", body, services.secret("prefect"))


def start(prefect, name, **parameters):
    """Start a run of a deployment as Prefect's page does; the answer."""
    deployment = prefect(f"deployments/name/full-pipeline/{name}")[1]
    return prefect(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})


def ended(services, prefect, run):
    """The final state of a run, and the names of all its states."""
    deadline = time.monotonic() + 240
    while (state := prefect(f"flow_runs/{run}")[1]["state"])["type"] not in (
        "COMPLETED",
        "FAILED",
        "CRASHED",
        "CANCELLED",
    ):
        logs = [(services.root / f"worker-{name}.log").read_text()[-2000:] for name in ("cpu", "gpu")]
        assert time.monotonic() < deadline, f"{state}\n{logs[0]}\n{logs[1]}"
        time.sleep(0.3)
    return state, [one["name"] for one in prefect(f"flow_run_states/?flow_run_id={run}")[1]]


SMALL = ["ingest.sources=teaching", "pretrain.steps=2", "tokenizer.vocab_size=600", "resources.workers=1"]


def test_a_gpu_run_has_its_data_made_on_the_cpu_pool_and_gives_its_place_free_meanwhile(services, prefect):
    asked = {"preset": MICRO, "overrides": SMALL, "until": "pretrain", "refresh": ["encode"]}
    status, run = start(prefect, "gpu", **asked, data="full-pipeline/data")
    assert status in (200, 201), run
    deadline = time.monotonic() + 180
    while (state := prefect(f"flow_runs/{run['id']}")[1]["state"])["name"] != "NoWorker":
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    assert "prefect worker start --pool gpu-pool" in state["message"]
    services.second()
    state, names = ended(services, prefect, run["id"])
    logs = (services.root / "worker-gpu.log").read_text() + (services.root / "worker-cpu.log").read_text()
    assert state["type"] == "COMPLETED", f"{state}\n{logs[-4000:]}"
    assert names.count("Running") == 2 and "AwaitingData" in names
    tagged = {"flow_runs": {"tags": {"all_": [f"data for {run['id']}"]}}}
    (data,) = prefect("flow_runs/filter", tagged)[1]
    assert data["state"]["type"] == "COMPLETED" and data["work_pool_name"] == "cpu-pool"
    assert data["parameters"]["refresh"] == ["encode"], "built again there, and taken from the store here"
    one, two = services.root / "worker-cpu", services.root / "worker-gpu"
    assert list((one / "store").glob("encode/*/lineage.json")) and not list((one / "store").glob("pretrain/*"))
    assert list((two / "store").glob("pretrain/*/lineage.json"))
    (summary,) = (two / "runs").glob("*/summary.json")
    stages = {stage["name"]: stage["state"] for stage in json.loads(summary.read_text())["stages"]}
    assert {name for name, state in stages.items() if state == "ran"} == {"pretrain"} and stages["encode"] == "cached"
    # All of it is in the two databases, and nothing without a password.
    assert services.sql("prefect", "select count(*) from flow_run") == "2"
    assert int(services.sql("prefect", "select count(*) from task_run where state_type = 'COMPLETED'")) >= 2 * 10
    mlflow = f"{services.url('mlflow')}/api/2.0/mlflow/experiments/search"
    assert call(mlflow, {"max_results": 10})[0] == 401
    status, found = call(mlflow, {"max_results": 10}, f"admin:{services.secret('mlflow')}")
    assert status == 200 and len(found["experiments"]) == 2
    assert int(services.sql("mlflow", "select count(*) from runs where status = 'FINISHED'")) >= 12
    assert call(f"{services.url('prefect')}/api/flow_runs/filter", {})[0] == 401


def test_a_wrong_parameter_is_refused_before_there_is_a_run_and_a_wrong_option_before_anything_runs(
    services, prefect, receiver
):
    for wrong in (
        {"preset": "tinny"},
        {"until": "pretraining"},
        {"overrides": ["pretrain.steps 3"]},
        {"refresh": ["x"]},
    ):
        status, answer = start(prefect, "cpu", **wrong)
        assert status in (409, 422) and next(iter(wrong)) in str(answer), answer
    run = start(prefect, "cpu", overrides=["pretrain.steps=many", "sft.stepps=1"])[1]
    state, _ = ended(services, prefect, run["id"])
    assert state["name"] == "Refused" and state["type"] == "FAILED"
    assert "pretrain.steps" in state["message"] and "sft.stepps" in state["message"]
    told = receiver.wait("pretrain.steps")
    assert told["about"] == "failures" and "Refused" in told["text"] and run["id"] in told["url"]
    assert receiver.wait("pretrain.steps", "message")["title"] == "full-pipeline failures"


def test_a_new_champion_is_told(services, receiver, monkeypatch):
    from flows.automations import announce

    monkeypatch.setenv("PREFECT_API_URL", f"{services.url('prefect')}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", services.secret("prefect"))
    model = {"stage": "dpo", "key": "3fa9", "digest": "0"}
    decision = {"preset": "tiny", "action": "gate", "model": model, "moved": True, "run": "20260101-000000-abc"}
    announce(decision, "champion of tiny: dpo/3fa9")
    told = receiver.wait("champion of tiny")
    assert told["about"] == "champions" and "20260101-000000-abc" in told["text"]


SOONER = "import flows.automations as a; a.LOST_SECONDS = a.STUCK_SECONDS = 10; a.install({api!r}, [], [{url!r}])"


def test_lost_runs_are_crashed_and_told_and_stuck_ones_told_while_the_databases_are_restored(
    services, prefect, receiver, tmp_path
):
    sooner = SOONER.format(api=f"{services.url('prefect')}/api", url=receiver.url)
    services.once("deploy", "python", "-c", sooner)
    names = " ".join(rule["name"] for rule in prefect("automations/filter", {})[1])
    assert "tell http://" in names and "tell json://" not in names, "who is to be told is told as a whole"
    (flow,) = prefect("flows/filter", {})[1]
    prefect("flow_runs/", {"flow_id": flow["id"], "name": "stuck", "state": {"type": "PENDING"}})
    run = prefect("flow_runs/", {"flow_id": flow["id"], "name": "lost", "state": {"type": "RUNNING"}})[1]
    ours = {"prefect.resource.id": f"prefect.flow.{flow['id']}", "prefect.resource.role": "flow"}
    sign = {
        "event": "prefect.flow-run.heartbeat",
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run['id']}", "prefect.resource.name": "lost"},
        "related": [ours | {"prefect.resource.name": flow["name"]}],
    }
    assert prefect("events", [sign])[0] == 204
    for name, table in (("prefect", "flow_run"), ("mlflow", "runs"), ("mlflow_auth", "users")):
        dump, count = tmp_path / name, f"select count(*) from {table}"
        subprocess.run(["pg_dump", "-Fc", "-f", str(dump), name], env=services.pg, check=True)
        services.sql("postgres", f"create database {name}_again")
        subprocess.run(["pg_restore", "-d", f"{name}_again", str(dump)], env=services.pg, check=True)
        assert services.sql(f"{name}_again", count) == services.sql(name, count) != "0"
    state, _ = ended(services, prefect, run["id"])
    assert state["name"] == "Crashed" and "no sign of life" in state["message"]
    assert "Crashed" in receiver.wait("lost: ")["text"]
    assert receiver.wait("stuck: has not started")["about"] == "stuck runs"
