"""The Prefect flow ``full-pipeline``: what ``pipeline run`` and ``prefect deployment run full-pipeline/gpu`` both
start; and its data stages alone, which is what ``full-pipeline/data`` starts."""

from __future__ import annotations

import inspect
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect import tags as tagged
from prefect.artifacts import create_link_artifact
from prefect.context import TagsContext
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.console import duration, headline, losses
from flows.dag import full, of_kind, stages, trains
from flows.environment import spare_loopback
from flows.form import LAST_DATA_STAGE, DataStage, Override, PresetFile, PresetName, StageName, Where
from flows.handover import Handover, wake
from flows.promote import promote
from flows.services import mlflow_address, run_page
from flows.zombies import own_tag
from pipeline.config.tree import ConfigError
from pipeline.pages.funnel.page import write_funnel
from storage.places import home
from tasks.running.events import Told
from tasks.running.prefect_run import PrefectRun
from tasks.running.run import WATCHERS, new_run_id
from tasks.running.sources import asked, notes, withdrawn
from tasks.tracking.tracker import start_tracker, summary


def run_name() -> str:
    """What a flow run is called in Prefect: what was asked for, so that runs are told apart."""
    asked: dict[str, Any] = flow_run.parameters or {}
    until = [f"--until {asked['until']}"] if asked.get("until") else []
    name = " ".join([Path(str(asked.get("preset", "tiny"))).stem, *(asked.get("overrides") or []), *until])
    return name if len(name) <= 200 else name[:199] + "…"


@flow(name="full-pipeline", flow_run_name=run_name, log_prints=False, persist_result=False)
def full_pipeline(
    preset: PresetName | PresetFile = "tiny",
    overrides: list[Override] = [],  # noqa: B006 - never changed, and the form shows it
    until: StageName | None = None,
    refresh: list[StageName] = [],  # noqa: B006
    tags: dict[str, str] = {},  # noqa: B006
    data: Where = "here",
) -> dict[str, Any]:
    """Raw text in, an aligned, evaluated, exported language model out.

    Args:
        preset: where every option starts from: one of the presets (`pipeline presets` says what each is for), or a
            .toml file on the worker.
        overrides: options to change, one a line as `section.key=value`, for example `pretrain.steps=2000`,
            `pretrain.optim.lr=3e-4` or `ingest.sources=/data/my.jsonl`. `pipeline config PRESET --explain` lists all of
            them with meaning, type and range.
        until: stop after this stage; everything after it is left out.
        refresh: stages to build again although their results are cached; what follows runs again only where the bytes
            differ.
        tags: tags for the run in MLflow, to find runs that belong together.
        data: where the stages before training are made. `full-pipeline/data`: by that deployment, on its CPU pool, into
            the store that both share; this run gives its place free until they are there. `here`: by this run's own
            worker.
    """
    try:
        return _pipeline(str(preset), list(overrides), until, list(refresh), tags, data)
    except ConfigError as error:  # no traceback in the log for what somebody wrote: the state says what to change
        refused = Failed(name="Refused", message=f"nothing ran; change this and run again:\n{error}", data=error)
        return refused  # pyright: ignore[reportReturnType] - the run's state; its error is raised in whoever calls


@flow(
    name="full-pipeline",
    flow_run_name=run_name,
    log_prints=False,
    persist_result=False,
    on_completion=[wake],
    on_failure=[wake],
    on_cancellation=[wake],
    on_crashed=[wake],
)
def data_stages(
    preset: PresetName | PresetFile = "tiny",
    overrides: list[Override] = [],  # noqa: B006
    until: DataStage = LAST_DATA_STAGE,
    refresh: list[DataStage] = [],  # noqa: B006
    tags: dict[str, str] = {},  # noqa: B006
) -> dict[str, Any]:
    """The stages before training, for a machine without a GPU: what they make lies in the store, where a run with the
    same preset and overrides takes it from.

    Args:
        preset: where every option starts from: one of the presets (`pipeline presets` says what each is for), or a
            .toml file on the worker.
        overrides: options to change, one a line as `section.key=value`, for example `ingest.sources=/data/my.jsonl`.
        until: stop after this stage; everything after it is left out.
        refresh: stages to build again although their results are cached.
        tags: tags for the run in MLflow, to find runs that belong together.
    """
    return full_pipeline.fn(preset, overrides, until, refresh, tags)


def of_this_process() -> AbstractContextManager[Any]:
    """Around a call of a flow: its run has a tag that names this process (flows/zombies.py)."""
    return tagged(own_tag())


def _pipeline(
    preset: str, overrides: list[str], until: str | None, refresh: list[str], tags: dict[str, str], data: str
) -> dict[str, Any]:
    """The run itself. Raises ConfigError before anything runs, and whatever a stage raises."""
    os.environ.setdefault(
        "NUMBA_CACHE_DIR", str(home() / "cache" / "numba")
    )  # compiled data kernels outlive the process
    spare_loopback()
    config, inputs = asked(preset, overrides, here=trains(until))
    run, logger = PrefectRun(new_run_id(), config.resources, until, tuple(refresh), Path(preset).stem), get_run_logger()
    run.store.check()
    if problems := withdrawn(inputs, run.store):
        raise ConfigError(problems)
    if data != "here" and trains(until):
        refresh = Handover(data, preset, overrides, refresh, tags).made(config, inputs, logger)
        run.refresh = tuple(refresh)
    run.listeners += [*WATCHERS, _to_log(logger), _link_to_mlflow(run.directory, logger)]
    run.open(
        preset=preset,
        overrides=overrides,
        config=config.model_dump(mode="json"),
        until=until,
        refresh=refresh,
        tags=tags,
        prefect={
            "flow_run_id": str(flow_run.id),
            "flow_run_name": flow_run.name,
            "url": flow_run.ui_url,
        },
    )
    tracker = start_tracker(run.directory)
    for line in notes(config, inputs):
        logger.warning(line)
    began, state, error = time.monotonic(), "failed", None
    try:
        with run, TagsContext(current_tags=set()):  # a task asks the server about each tag that it has before it runs
            full(config, inputs)
        promote(run, preset, config)
        state = "completed"
    except BaseException as problem:
        state = "failed" if isinstance(problem, Exception) else "cancelled"
        error = f"{type(problem).__name__}: {problem}"
        run.stop()
        raise
    finally:
        _funnel(run)
        run.emit("run_finished", state=state, seconds=round(time.monotonic() - began, 3), error=error)
        tracking = tracker.close(timeout=60)
        run.settle()
    return run.summary(preset=preset, seconds=time.monotonic() - began, mlflow=tracking, flow_run_id=str(flow_run.id))


def _funnel(run: PrefectRun) -> None:
    """The page about what became of every document, in the run's directory: it belongs to no artifact, since it shows
    them all."""

    def of(names: tuple[str, ...]) -> dict[str, Path]:
        return {
            name: Path(run.stages[name]["path"])
            for name in names
            if run.stages.get(name, {}).get("state") in ("ran", "cached")
        }

    if data := of(of_kind("documents")):
        about = {s.name: (inspect.getdoc(s.stage.fn) or "").partition("\n\n")[0] for s in stages()}
        tokens = next(iter(of(of_kind("tokens")).values()), None)
        write_funnel(data, run.directory, tokens=tokens, records=of(of_kind("records")), about=about)


def _to_log(logger: Any) -> Any:
    """Stage ends and notes as lines of the Prefect log."""

    def listen(event: Told) -> None:
        if event["event"] == "stage_finished":
            what = headline(event["metrics"], event["stage"])
            line = f"{event['stage']} {event['state']} {duration(event['seconds'])} {what}"
            logger.error("%s: %s", line, event["error"]) if event["error"] else logger.info(line)
            for line in losses(event) if not event["error"] else ():
                logger.warning("%s: %s", event["stage"], line)
        elif event["event"] == "note":
            logger.info(event["text"])

    return listen


def _link_to_mlflow(directory: Path, logger: Any) -> Any:
    """A link from the flow run's page to its run in MLflow, as soon as the tracker has made that."""
    linked: list[str] = []

    def listen(event: Told) -> None:
        tracking, base = summary(directory), mlflow_address(home())
        if linked or not base or not tracking.get("parent_run_id"):
            return
        linked.append(run_page(base, tracking))
        logger.info("in MLflow: %s", linked[0])
        create_link_artifact(linked[0], link_text="this run in MLflow", description="curves, data and models")

    def hear(event: Told) -> None:
        if event["event"] == "stage_finished":
            listen(event)

    return hear
