"""prefect.yaml, docker-compose.yml and the image: their form, and that they fit the project and each other."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.pools import merged

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PREFECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
JOBS = {"buckets", "deploy"}  # end when done; everything else stays


def test_deployments_name_the_flow_its_pools_and_all_of_its_parameters():
    assert {d["name"]: d["work_pool"]["name"] for d in PREFECT["deployments"]} == {
        "cpu": "cpu-pool",
        "gpu": "gpu-pool",
        "data": "cpu-pool",
    }
    for deployment in PREFECT["deployments"]:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert flow.name == "full-pipeline"
        assert flow.validate_parameters(deployment["parameters"])
        assert set(deployment["parameters"]) == set(flow.parameters.properties)
        for asked in flow.parameters.properties.values():  # the form teaches
            assert len(asked["description"]) > 30


def test_the_data_deployment_offers_what_needs_no_gpu():
    from flows.dag import data_names, trains
    from flows.full_pipeline import data_stages, full_pipeline

    assert data_names()[-1] == "encode" and not any(map(trains, data_names())) and trains("pretrain") and trains(None)
    asked = data_stages.parameters.properties
    assert asked["until"]["enum"] == asked["refresh"]["items"]["enum"] == list(data_names())
    whole = full_pipeline.parameters.properties
    assert {"tiny", "gpu"} <= {*whole["preset"]["anyOf"][0]["enum"]} and "report" in whole["refresh"]["items"]["enum"]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_job_templates_hold_all_of_prefects_own_and_ours_over_it(kind):
    """Prefect carries the base job templates of its worker packages; every variable that ours use is explained."""
    import prefect

    views = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    base = json.loads(views.read_text())[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    whole = merged(base, json.loads((ROOT / "deploy" / "pools" / f"{kind}.json").read_text()))
    variables = whole["variables"]["properties"]
    assert {*re.findall(r"{{ (\w+) }}", json.dumps(whole["job_configuration"]))} == {*variables}
    assert all(variable.get("title") for variable in variables.values())

    def holds(whole, part):
        if isinstance(part, dict):
            return all(name in whole and holds(whole[name], value) for name, value in part.items())
        if isinstance(part, list):
            return len(whole) >= len(part) and all(map(holds, whole, part))
        return whole == part

    assert holds(whole["job_configuration"], base["job_configuration"])
    worker = COMPOSE["services"]["worker-gpu"]
    given = {**worker["environment"]} | {secret["target"]: "" for secret in worker["secrets"]}
    assert variables["env"]["default"].keys() <= given.keys() and variables["image"]["default"] == worker["image"]


def test_services_are_pinned_healthy_and_stop_in_time():
    for name, service in COMPOSE["services"].items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"]), f"{name}: pin {service['image']}"
        assert service["init"] is True
        if name not in JOBS:
            assert (
                service["healthcheck"]["test"]
                and service["stop_grace_period"]
                and service["restart"] == "unless-stopped"
            ), name


def test_services_depend_on_services_that_are_there():
    services = COMPOSE["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in JOBS else "service_healthy"
            assert other in services and how == {"condition": wanted}, f"{name} -> {other}"
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], (
                f"{name}: {volume}"
            )
        for secret in service.get("secrets", []):
            assert (secret if isinstance(secret, str) else secret["source"]) in COMPOSE["secrets"]


def test_every_setting_is_explained_and_secrets_are_files_that_a_script_makes(tmp_path):
    text = (ROOT / "docker-compose.yml").read_text()
    explained = set(re.findall(r"^(\w+)=", (ROOT / "deploy/env.example").read_text(), re.M))
    assert set(re.findall(r"\$\{(\w+)", text)) == explained
    assert not re.findall(r"\$\{\w*(?:PASSWORD|SECRET|KEY|TOKEN)", text)
    script = tmp_path / "make_secrets.sh"
    shutil.copy(ROOT / "deploy" / "make_secrets.sh", script)
    first, again = (subprocess.run(["sh", script], capture_output=True, text=True, check=True) for _ in range(2))
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {f"deploy/secrets/{name}" for name in made} == {each["file"] for each in COMPOSE["secrets"].values()}
    assert len(first.stdout.splitlines()) == len(made) and not again.stdout, "what is there stays"
    assert len({made["postgres"], made["mlflow"], made["s3"], made["prefect"]}) == 4 and len(made["postgres"]) == 36
    assert json.loads(made["s3.json"])["identities"][0]["credentials"][0]["secretKey"] == made["s3"]
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    for ignored in (ROOT / ".gitignore", ROOT / "deploy/Dockerfile.dockerignore"):
        assert "deploy/secrets" in ignored.read_text(), "no secret is committed, or baked into an image"


def test_secrets_reach_the_command_and_nothing_else_does(tmp_path):
    (tmp_path / "PGPASSWORD").write_text('it\'s "a" $(secret)\n')
    (tmp_path / "s3.json").write_text("{}")
    command = ["sh", str(ROOT / "deploy/entrypoint.sh"), "printenv", "PGPASSWORD"]
    done = subprocess.run(
        command, env={"SECRETS": str(tmp_path), "PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert done.stdout == 'it\'s "a" $(secret)\n' and done.returncode == 0
    nothing = subprocess.run([*command[:2], "true"], env={"SECRETS": "/nowhere", "PATH": os.environ["PATH"]})
    assert nothing.returncode == 0


def test_web_interfaces_are_local_by_default():
    for service in COMPOSE["services"].values():
        ports = service.get("ports", [])
        assert service.get("profiles") == ["tls"] or all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)


def test_the_image_copies_what_exists_and_commands_name_what_exists():
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", dockerfile, re.M):
        assert all((ROOT / part).exists() for part in line.split()[:-1])
    pools = {d["work_pool"]["name"] for d in PREFECT["deployments"]}
    commands = [part for service in COMPOSE["services"].values() for part in service.get("command", [])]
    assert {part for part in commands if re.fullmatch(r"\w+-pool", part)} == pools
    assert all((ROOT / part).exists() for part in commands if part.startswith("deploy/"))
    assert COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"] == "deploy/mlflow_auth.ini"


def test_compose_itself_accepts_the_file(tmp_path):
    """Where Docker's compose plugin is installed it has the last word; elsewhere the form above has to do."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        files = ["--env-file", str(ROOT / "deploy/env.example"), "-f", str(ROOT / "docker-compose.yml")]
        done = subprocess.run(
            [docker, "compose", "--profile", "gpu", *files, "config", "-q"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
