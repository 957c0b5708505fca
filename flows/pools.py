"""Work pools on a Prefect server, made from the types of worker that Prefect knows.

Prefect's own job template of a type is the base; ``deploy/pools/TYPE.json`` is merged over it as a JSON merge patch
(RFC 7386), so a newer Prefect brings its own options and ours stay a page.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from flows.processes import ServiceError, ask
from storage.errors import Refused
from storage.places import ROOT

POOLS = ("cpu-pool", "gpu-pool")
TYPES = ("process", "docker", "kubernetes")


def make_pools(api: str, gpu_type: str | None = None) -> None:
    """Create the work pools that prefect.yaml names, as far as they are missing. ``gpu_type``, one of ``TYPES``, is the
    type of gpu-pool: one of this type gets the present template, one of another is Refused; None leaves one that is
    there, whatever it is."""
    there = {pool["name"]: pool["type"] for pool in ask(api, "work_pools/filter")}
    for name in POOLS:
        wanted = gpu_type if name == "gpu-pool" else None
        if name not in there:
            kind = wanted or "process"
            body = {"name": name, "type": kind, "base_job_template": job_template(api, kind)}
            ask(api, "work_pools/", body)
        elif wanted and wanted != there[name]:
            raise Refused(
                f"--gpu-pool {wanted}: {name} is there and of type {there[name]}, which Prefect cannot change; delete"
                f" it first: prefect work-pool delete {name}"
            )
        elif wanted:
            ask(api, f"work_pools/{name}", {"base_job_template": job_template(api, wanted)}, method="PATCH")


def job_template(api: str, kind: str) -> dict[str, Any]:
    """The base job template of a pool of type ``kind``: that of Prefect (of the worker's package, where it is
    installed), with what ``deploy/pools`` has for it. ServiceError when Prefect knows none."""
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

    with temporary_settings({PREFECT_API_URL: api}):
        base = asyncio.run(get_default_base_job_template_for_infrastructure_type(kind))
    if base is None:
        raise ServiceError(f"Prefect knows no job template of type {kind}; pip install 'full-pipeline[{kind}]'")
    own = ROOT / "deploy" / "pools" / f"{kind}.json"
    return merged(base, json.loads(own.read_text("utf-8"))) if own.is_file() else base


def merged(base: Any, patch: Any) -> Any:
    """``base`` with a JSON merge patch applied: objects are merged, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(cast(dict[str, Any], base)) if isinstance(base, dict) else dict[str, Any]()
    for name, value in cast(dict[str, Any], patch).items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
