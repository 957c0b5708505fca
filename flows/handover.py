"""Data stages on another pool: a run for GPUs has ``full-pipeline/data`` make them, gives its place free until they are
there, and goes on with every one of them taken from the store that both share.

The waiting run is Scheduled, in a state of its own name: no process, no worker's place, no pod. The run that makes the
data wakes it; should that one die without a word, the waiting run looks again by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, Pause
from prefect.runtime import deployment, flow_run
from prefect.states import Scheduled
from prefect.utilities.engine import propose_state_sync
from prefect.utilities.urls import url_for

from flows.dag import data_names, full
from pipeline.config.tree import Config
from storage.errors import Failed
from tasks.running.plan import PlanRun
from tasks.running.sources import Inputs

if TYPE_CHECKING:
    from logging import Logger

    from prefect.logging.loggers import LoggingAdapter

AWAITING = "AwaitingData"
LOOK_AGAIN = timedelta(minutes=10)
FOR = "data for "
"""Tag of a data run: this, and the id of the run that waits for it."""


class DataFailed(Failed):
    """The run that was to make the data stages did not end well; the text says how."""


@dataclass(frozen=True)
class Handover:
    """What a run asks of ``to``, a deployment that makes data stages: its own preset, overrides and tags."""

    to: str
    preset: str
    overrides: list[str]
    refresh: list[str]
    tags: dict[str, str]

    def made(self, config: Config, inputs: Inputs, logger: Logger | LoggingAdapter) -> list[str]:
        """Stages that are still to be built again, once the data stages are in the store or are to be made here.

        Raises Pause, which ends this process until they are, and DataFailed.
        """
        if not deployment.id:
            return self.refresh  # nobody would start this run a second time
        with get_client(sync_client=True) as client:
            earlier = self._sent(client)
            if earlier is None:
                missing = self._missing(config, inputs, tuple(self.refresh))
                if not missing or not self._served(client, missing, logger):
                    return self.refresh
                earlier = self._send(client)
                logger.info("%s makes %s: %s", self.to, ", ".join(missing), url_for("flow-run", earlier.id))
            state = earlier.state
            if state is None or not state.is_final():
                self._leave(client, earlier)
            elif not state.is_completed():
                raise DataFailed(
                    f"{self.to} did not make the data, its run {earlier.name} is {state.name}: {state.message}"
                )
        if missing := self._missing(config, inputs, ()):
            logger.warning(
                "%s has made the data, but not into this worker's store, so %s are made here again: set the same"
                " PIPELINE_STORE for both workers",
                self.to,
                ", ".join(missing),
            )
        return [name for name in self.refresh if name not in data_names()]

    def _missing(self, config: Config, inputs: Inputs, refresh: tuple[str, ...]) -> list[str]:
        """Data stages that this worker's store lacks."""
        plan = PlanRun("plan", config.resources, data_names()[-1], refresh, self.preset)
        with plan:
            full(config, inputs)
        return [planned.stage for planned in plan.planned if planned.state != "hit"]

    def _served(self, client: SyncPrefectClient, missing: list[str], logger: Logger | LoggingAdapter) -> bool:
        """Whether somebody would take the data run; says so when not."""
        try:
            pool = client.read_deployment_by_name(self.to).work_pool_name
        except ObjectNotFound:
            logger.warning("there is no deployment %s: %s are made here", self.to, ", ".join(missing))
            return False
        workers = client.read_workers_for_work_pool(pool) if pool else []
        if any(worker.status == "ONLINE" for worker in workers):
            return True
        logger.warning("no worker serves %s, the pool of %s: %s are made here", pool, self.to, ", ".join(missing))
        return False

    def _sent(self, client: SyncPrefectClient) -> FlowRun | None:
        """The data run that this run has waited for, when it comes back from waiting."""
        own = UUID(str(flow_run.id))
        states = sorted(client.read_flow_run_states(own), key=lambda state: state.timestamp)
        ends = [i for i, state in enumerate(states) if state.is_final()]  # it may be run again after a failure
        if not any(state.name == AWAITING for state in states[ends[-1] + 1 if ends else 0 :]):
            return None
        of_tag = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"{FOR}{own}"]))
        newest = client.read_flow_runs(flow_run_filter=of_tag, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
        return newest[0] if newest else None

    def _send(self, client: SyncPrefectClient) -> FlowRun:
        refresh = [name for name in self.refresh if name in data_names()]
        asked = {"preset": self.preset, "overrides": self.overrides, "refresh": refresh, "tags": self.tags}
        return client.create_flow_run_from_deployment(
            client.read_deployment_by_name(self.to).id, parameters=asked, tags=[f"{FOR}{flow_run.id}"]
        )

    def _leave(self, client: SyncPrefectClient, data: FlowRun) -> None:
        """End this process and be started again when the data is there. Raises Pause."""
        state = propose_state_sync(
            client,
            Scheduled(
                name=AWAITING,
                scheduled_time=datetime.now(UTC) + LOOK_AGAIN,
                message=f"{self.to} makes the data, then this run goes on: {url_for('flow-run', data.id)}",
            ),
            flow_run_id=UUID(str(flow_run.id)),
        )
        now = client.read_flow_run(data.id).state
        if now and now.is_final():  # it ended before it could see that somebody waits
            _start(client, UUID(str(flow_run.id)))
        raise Pause(state=state)


def wake(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """Start the runs for which the data run ``flow_run`` was made, if they wait; a hook for whenever that ends."""
    with get_client(sync_client=True) as client:
        for own in (UUID(tag.removeprefix(FOR)) for tag in flow_run.tags if tag.startswith(FOR)):
            waiting = client.read_flow_run(own).state
            if waiting and waiting.name == AWAITING:
                _start(client, own)


def _start(client: SyncPrefectClient, waiting: UUID) -> None:
    client.set_flow_run_state(waiting, Scheduled(message="the data run has ended"), force=True)
