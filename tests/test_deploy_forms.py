"""prefect.yaml, docker-compose.yml and the image: their form, and that they fit the project and each other."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PREFECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
JOBS = {"buckets", "deploy"}  # end when done; everything else stays


def test_deployments_name_the_flow_its_pools_and_parameters_it_has():
    assert {d["name"]: d["work_pool"]["name"] for d in PREFECT["deployments"]} == {"cpu": "cpu-pool", "gpu": "gpu-pool"}
    for deployment in PREFECT["deployments"]:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert flow.name == "full-pipeline"
        assert flow.validate_parameters(deployment["parameters"])
        assert (
            {"preset", "overrides", "until", "refresh"}
            == set(deployment["parameters"])
            <= set(flow.parameters.properties)
        )


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
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]


def test_every_setting_is_explained_and_no_secret_has_a_default():
    text = (ROOT / "docker-compose.yml").read_text()
    explained = set(re.findall(r"^(\w+)=", (ROOT / "deploy/env.example").read_text(), re.M))
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used == explained
    assert not re.findall(r"\$\{\w*(?:PASSWORD|SECRET)\w*:-", text)


def test_web_interfaces_are_local_by_default():
    for service in COMPOSE["services"].values():
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service.get("ports", []))


def test_the_image_copies_what_exists_and_commands_name_what_exists():
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", dockerfile, re.M):
        assert all((ROOT / part).exists() for part in line.split()[:-1])
    pools = {d["work_pool"]["name"] for d in PREFECT["deployments"]}
    commands = [part for service in COMPOSE["services"].values() for part in service.get("command", [])]
    assert {part for part in commands if re.fullmatch(r"\w+-pool", part)} == pools
    assert all((ROOT / part).exists() for part in commands if part.startswith("deploy/"))
    assert json.loads(re.sub(r"\$\{\w+\}", "x", COMPOSE["configs"]["s3-identities"]["content"]))["identities"][0][
        "actions"
    ]


def test_compose_itself_accepts_the_file(tmp_path):
    """Where Docker's compose plugin is installed it has the last word; elsewhere the form above has to do."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        files = ["--env-file", str(ROOT / "deploy/env.example"), "-f", str(ROOT / "docker-compose.yml")]
        done = subprocess.run(
            [docker, "compose", "--profile", "gpu", *files, "config", "-q"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
