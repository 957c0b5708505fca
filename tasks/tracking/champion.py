"""The registry's alias ``champion``, which follows what the store says (storage/champions.py).

Every step looks first whether it was done, so what an outage left out is made up for by the next run, by the tracker's
``--sync`` and by the next ``pipeline promote``.
"""

from __future__ import annotations

from typing import Any, cast

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from storage.champions import Champions, Decision
from storage.store import Store
from tasks.tracking.forms import as_tags

ALIAS = "champion"


def text(decision: Decision) -> str:
    """A decision as Markdown: what became of the model, and each condition with its numbers."""
    model, before = decision["model"], decision["before"]
    name = f"{model['stage']}/{model['key'][:12]}"
    said = {
        "gate": "is the champion"
        if decision["moved"]
        else "stays the champion"
        if before == model
        else "was not promoted",
        "promote": "was made champion by hand",
        "rollback": "is the champion again: the one after it was taken back",
    }[decision["action"]]
    lines = [f"**{name}** {said} ({decision['preset']}, {decision['created']})."]
    lines += [f"- {'✓' if c['held'] else '✗'} `{c['text']}`: {c['why']}" for c in decision["conditions"]]
    return "\n".join(lines)


def tags(decision: Decision) -> dict[str, str]:
    """A decision as tags of a run or a model version."""
    failed = [c["text"] for c in decision["conditions"] if not c["held"]]
    return as_tags(
        {
            "champion.action": decision["action"],
            "champion.moved": str(decision["moved"]).lower(),
            "champion.model": f"{decision['model']['stage']}/{decision['model']['key'][:12]}",
            "champion.conditions": "; ".join(c["text"] for c in decision["conditions"]),
            "champion.failed": "; ".join(failed),
            "champion.decided": decision["created"],
        }
    )


def follow(client: MlflowClient, store: Store, preset: str) -> str | None:
    """Point the alias at the version of the store's champion, and note the decisions on the versions; the version, or
    None where MLflow has none of it."""
    champions = Champions(store)
    now = champions.current(preset)
    if now is None:
        return None
    versions = {version.tags.get("artifact.digest"): version for version in _versions(client, preset)}
    noted = {version.version: version.tags.get("champion.decided") for version in versions.values()}
    newest = {decision["model"]["digest"]: decision for decision in champions.history(preset)}
    for digest, decision in newest.items():
        version = versions.get(digest)
        if version and noted[version.version] != decision["created"]:
            for key, value in tags(decision).items():
                client.set_model_version_tag(preset, version.version, key, value)
    target = versions.get(now["model"]["digest"])
    if target is None:
        return None
    current = cast(dict[str, Any], cast(Any, client.get_registered_model(preset)).aliases).get(ALIAS)
    if str(current) != str(target.version):
        client.set_registered_model_alias(preset, ALIAS, str(target.version))
    return str(target.version)


def _versions(client: MlflowClient, preset: str) -> list[Any]:
    """All versions of a registered model, oldest first, page by page; none when there is no such model."""
    found: list[Any] = []
    token: str | None = None
    query = "name = '" + preset.replace("'", "") + "'"
    try:
        while True:
            page: Any = client.search_model_versions(query, max_results=200, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []
