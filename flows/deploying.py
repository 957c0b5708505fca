"""Deployments and automations on a Prefect server: what ``pipeline deploy`` and ``pipeline up`` bring
there."""

from __future__ import annotations

import os
import subprocess
import sys

from flows.automations import install
from flows.pools import POOLS
from flows.processes import ServiceError, ask
from storage.places import ROOT

PREFECT_QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true", "PREFECT_CLI_PROMPT": "false"}


def deploy(api: str, targets: list[str] | None = None) -> list[str]:
    """``prefect deploy --all`` from the project's folder, and what the server does by itself; ``targets`` as in
    :func:`flows.automations.install`. Needs the pools. Gives the names of all that. Raises ServiceError."""
    if not (ROOT / "prefect.yaml").is_file():
        raise ServiceError(f"{ROOT} has no prefect.yaml; deployments are made from a checkout of the project")
    _finish(_prefect_command(api, "--no-prompt", "deploy", "--all"), "prefect deploy --all")
    there = ask(api, "deployments/filter", {"flows": {"name": {"any_": ["full-pipeline"]}}})
    return [*sorted(f"full-pipeline/{one['name']}" for one in there), *install(api, POOLS, targets)]


def _prefect_command(api: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **PREFECT_QUIET, "PREFECT_API_URL": api, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen[str], what: str) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise ServiceError(f"{what} failed:\n{output[-3000:]}")
