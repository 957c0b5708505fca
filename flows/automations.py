"""What Prefect's server does by itself about our runs: mark lost ones Crashed, say that a run waits for a worker, and
tell people of failures, stuck runs and new champions.

Works on any Prefect 3 server, whether or not the project is installed there: automations and blocks of Prefect's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import urllib.parse
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from flows.processes import ServiceError, alive, ask, entries
from storage.champions import Decision
from storage.errors import Refused
from storage.places import home

if TYPE_CHECKING:
    from prefect.automations import AutomationCore
    from prefect.events.actions import CallWebhook, SendNotification

PREFIX = "full-pipeline: "
TOLD = PREFIX + "tell "
HEARTBEAT = "prefect.flow-run.heartbeat"
LOST_SECONDS = 600
"""Without a sign of life for so long a run is lost. Prefect gives one every three minutes; a server that restarts or is
upgraded misses one."""
STUCK_SECONDS = 900
NO_WORKER = "NoWorker"
CHAMPION = "full-pipeline.champion.moved"
OURS = {"prefect.resource.role": "flow", "prefect.resource.name": "full-pipeline"}
ANY_RUN = {"prefect.resource.id": "prefect.flow-run.*"}
ENDED = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Refused", "Crashed", "Cancelled")}


def install(api: str, pools: Iterable[str], targets: list[str] | None) -> list[str]:
    """Install what the server at ``api`` is to do; gives its names. ``targets`` are where people are told, as a whole:
    [] tells nobody any more, None leaves them as they are. Raises Refused for a target that is none."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    check(targets or [])
    with temporary_settings({PREFECT_API_URL: api}):
        rules = [
            _lost(),
            *(_waits(pool) for pool in pools),
            *(rule for target in targets or [] for rule in _tell(target)),
        ]
        there, wanted = _installed(api), {rule.name for rule in rules}
        for rule in rules:
            _write(rule, there)
        for name, automation in there.items():
            if targets is not None and name.startswith(TOLD) and name not in wanted:
                automation.delete()
    return sorted(wanted)


def check(targets: list[str]) -> None:
    """Raise Refused with every target that cannot be told."""
    from apprise import Apprise

    wrong = [place(target) for target in targets if not _web(target) and not cast(Any, Apprise).instantiate(target)]
    if wrong:
        raise Refused(
            f"--notify  {', '.join(wrong)}  is no address that can be told; give an https:// address (a webhook,"
            " Slack's too), mailtos://USER:PASSWORD@HOST?to=NAME@HOST, or another URL of Apprise"
        )


def place(target: str) -> str:
    """A target without what is secret in it: scheme and host."""
    parts = urllib.parse.urlsplit(target)
    return f"{parts.scheme}://{parts.hostname}" if parts.scheme and parts.hostname else "(no URL)"


def announce(decision: Decision, text: str) -> None:
    """Tell the Prefect server in use, if one answers, that a champion has moved; its automations tell people."""
    entry = entries(home()).get("prefect", {})
    api = os.environ.get("PREFECT_API_URL") or (f"{entry['url']}/api" if entry and alive(entry) else None)
    if api is None or not decision["moved"]:
        return
    preset = decision["preset"]
    resource = {"prefect.resource.id": f"full-pipeline.champion.{preset}", "prefect.resource.name": preset}
    payload = {"text": text, "run": decision["run"], "action": decision["action"]}
    when = {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat()}
    with contextlib.suppress(ServiceError):  # the store has the champion, and the run's log tells of it
        ask(api, "events", [{"event": CHAMPION, "resource": resource, "payload": payload, **when}])


# -- rules -----------------------------------------------------------------------------------------------------------


def _lost() -> AutomationCore:
    """Runs that gave signs of life and stopped: Crashed, so that nothing waits for them."""
    from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    return AutomationCore(
        name=PREFIX + "lost runs are Crashed",
        description=f"A run that gave no sign of life for {LOST_SECONDS // 60} minutes is marked Crashed.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={"prefect.flow-run.*"},  # whatever is heard of it
            match=ResourceSpecification.model_validate(ANY_RUN),
            match_related=ResourceSpecification.model_validate(OURS),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=LOST_SECONDS,  # pyright: ignore[reportArgumentType] - seconds become a timedelta
        ),
        actions=[  # pyright: ignore[reportArgumentType] - Prefect's list of actions is invariant
            ChangeFlowRunState(  # pyright: ignore[reportCallIssue] - `force` has a default
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"no sign of life for {LOST_SECONDS // 60} minutes: its process or its machine is gone. Run it"
                " again: finished stages are cached, training resumes from its checkpoint",
            )
        ],
    )


def _waits(pool: str) -> AutomationCore:
    """A run that nobody takes says so, in its state and to whoever watches it."""
    from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    related = [OURS, {"prefect.resource.role": "work-pool", "prefect.resource.name": pool}]
    return AutomationCore(
        name=f"{PREFIX}say that no worker takes a run of {pool}",
        description=f"A run that is late is told to be waiting for a worker of {pool}.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Late"},
            match=ResourceSpecification.model_validate(ANY_RUN),
            match_related=[ResourceSpecification.model_validate(one) for one in related],
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[  # pyright: ignore[reportArgumentType] - Prefect's list of actions is invariant
            ChangeFlowRunState(  # pyright: ignore[reportCallIssue] - `force` has a default
                state=StateType.SCHEDULED,
                name=NO_WORKER,
                force=False,
                message=f"no worker takes it: none serves {pool}, or all are busy. It starts as soon as one is free."
                f" Start one where the project is installed: prefect worker start --pool {pool} --limit 1",
            )
        ],
    )


def _tell(target: str) -> list[AutomationCore]:
    """The rules by which one target is told of failures, of runs that are stuck and of new champions."""
    from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification

    def rule(what: str, text: str, **trigger: Any) -> AutomationCore:
        return AutomationCore(
            name=f"{TOLD}{place(target)} ({_hash(target)}) {what}",
            trigger=EventTrigger(threshold=1, **trigger),
            actions=[_message(target, what, text)],
        )

    ours = {
        "match": ResourceSpecification.model_validate(ANY_RUN),
        "match_related": ResourceSpecification.model_validate(OURS),
        "for_each": {"prefect.resource.id"},
    }
    run = "{{ flow_run.name }}"
    return [
        rule(
            "of failures",
            f"{run}: {{{{ flow_run.state.name }}}}: {{{{ flow_run.state.message }}}}",
            expect={f"prefect.flow-run.{name}" for name in ("Failed", "Refused", "Crashed")},
            posture=Posture.Reactive,
            **ours,
        ),
        rule(
            "of stuck runs",
            f"{run}: has not started in {STUCK_SECONDS // 60} minutes:"
            " {{ flow_run.state.message or flow_run.state.name }}",
            after={f"prefect.flow-run.{name}" for name in ("Late", NO_WORKER, "Pending")},
            expect={*ENDED, "prefect.flow-run.Running", "prefect.flow-run.AwaitingData"},
            posture=Posture.Proactive,
            within=STUCK_SECONDS,
            **ours,
        ),
        rule(
            "of champions",
            "{{ event.payload.text }} (run {{ event.payload.run }})",
            expect={CHAMPION},
            posture=Posture.Reactive,
        ),
    ]


def _message(target: str, what: str, text: str) -> CallWebhook | SendNotification:
    """How a target is told ``text``, a template. A webhook gets JSON whose ``text`` Slack's kind shows as it is."""
    from prefect.blocks.notifications import SlackWebhook
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook, SendNotification
    from pydantic import SecretStr

    name = f"full-pipeline-{_hash(target)}"
    if _web(target) and "hooks.slack" not in target:
        block = Webhook(url=SecretStr(target), headers={"Content-Type": "application/json"})  # pyright: ignore
        block.save(name, overwrite=True)
        page = "{{ (flow_run|ui_url if flow_run else event|ui_url)|tojson }}"
        payload = (
            f'{{"text": {{% set text %}}{text}{{% endset %}}{{{{ text|tojson }}}}, "about": {json.dumps(what[3:])},'
            f' "event": {{{{ event.event|tojson }}}}, "url": {page}}}'
        )
        return CallWebhook(block_document_id=_saved(block), payload=payload)
    block = SlackWebhook(url=SecretStr(target))  # Apprise's block: it sends to whatever the URL's scheme names
    block.save(name, overwrite=True)
    page = "{{ flow_run|ui_url if flow_run else event|ui_url }}"
    return SendNotification(
        block_document_id=_saved(block), subject=f"full-pipeline {what[3:]}", body=f"{text}\n{page}"
    )


# -- the server ------------------------------------------------------------------------------------------------------


def _web(target: str) -> bool:
    return target.startswith(("http://", "https://")) and bool(urllib.parse.urlsplit(target).hostname)


def _hash(target: str) -> str:
    return hashlib.sha256(target.encode()).hexdigest()[:8]


def _saved(block: Any) -> Any:
    return block._block_document_id


def _installed(api: str) -> dict[str, Any]:
    """Our automations on the server, by name."""
    from prefect.automations import Automation

    found = ask(api, "automations/filter")
    return {a["name"]: Automation.model_validate(a) for a in found if a["name"].startswith(PREFIX)}


def _write(rule: AutomationCore, there: dict[str, Any]) -> None:
    from prefect.automations import Automation

    wanted = Automation(**rule.model_dump())
    if earlier := there.get(rule.name):
        wanted.id = earlier.id
        wanted.update()
    else:
        wanted.create()
