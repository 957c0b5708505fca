"""Training and scoring on a Ray cluster: a placement group with one bundle a machine, and in each an actor that holds
the guard with the machine's ranks (tasks/running/node.py).

Ray finds the machines, counts GPUs and tells of their death; torchrun or DeepSpeed start the ranks, as on one machine.
When the caller dies, Ray ends the actors, and with them all ranks.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.running.connection import connect
from storage.digest import VOLATILE
from storage.files import whole, write_text
from storage.places import home
from tasks.running import guard, processes
from tasks.running.command import Meeting
from tasks.running.failure import WorkerFailed, explain
from tasks.running.node import CURVE, LOG, Facts, News, Node, Work, versions
from tasks.running.processes import Watch, stoppable, stopped_failure
from tasks.running.sharing import LAST_SECONDS, newest_shared, restore, small_files

if TYPE_CHECKING:
    import threading

    from pipeline.config.resources import Resources

LOST_SECONDS = 10.0
"""How long ranks may go on when another node's have ended: the first cause may be here."""
NOTE_SECONDS = 30.0
"""How often people are told what is waited for."""
SHARED_SETTINGS = ("PIPELINE_STORE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION")
"""What a machine without settings of its own takes over; credentials are each machine's own."""


def run_on_cluster(
    module: str,
    spec: str,
    out: Path,
    on: Resources,
    watch: Watch,
    *,
    single: bool,
    one_folder: bool = False,
    note: Callable[[str], None],
) -> WorkerFailed | None:
    """Run ``module`` in ``on.nproc`` ranks on each of ``on.nnodes`` machines until all have ended; why they failed, if
    they did. What they made is then in ``out``, and what they printed in ``out/_run/logs``.

    With ``one_folder`` machines that do not see each other's files leave the work to one. Raises
    :class:`WorkerFailed` when the cluster has no room, a machine dies, or ``watch`` or ``stop_all`` ends it, and
    ValueError when a machine lacks what it needs.
    """
    ray, out = connect(), out.resolve()
    token = uuid.uuid4().hex
    write_text(out / VOLATILE / ".caller", token)
    needed, artifacts = _inputs(spec, out)
    settings = {name: os.environ[name] for name in SHARED_SETTINGS if os.environ.get(name)}
    work = Work(module, spec, str(home()), str(out), token, needed, artifacts, settings, single)
    with stoppable() as stopped, _placed(ray, on, single, note, stopped) as (count, options):
        actors = [ray.remote(Node).options(**options[i]).remote(work) for i in range(count)]
        return _Training(ray, work, actors, on, out, stopped).run(watch, one_folder, note)


def _inputs(spec: str, out: Path) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What a spec names: absolute paths outside the home, and stage and key of artifacts in its store."""
    store, needed, artifacts = home() / "store", set[str](), set[tuple[str, str]]()
    for text in _strings(json.loads(spec)):
        path = Path(text)
        if not path.is_absolute() or path.is_relative_to(out) or not path.exists():
            continue
        if path.is_relative_to(store) and len(parts := path.relative_to(store).parts) > 1:
            artifacts.add((parts[0], parts[1]))
        else:
            needed.add(text)
    return tuple(sorted(needed)), tuple(sorted(artifacts))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        items = cast(dict[str, object], value).values() if isinstance(value, dict) else cast(list[object], value)
        for item in items:
            yield from _strings(item)


@contextlib.contextmanager
def _placed(
    ray: Any, on: Resources, single: bool, note: Callable[[str], None], stopped: threading.Event
) -> Generator[tuple[int, list[dict[str, Any]]]]:
    """Room on the cluster: how many machines, and the options of each one's actor."""
    from ray.util.placement_group import (
        placement_group,
        placement_group_table,  # pyright: ignore[reportUnknownVariableType] - Ray says no types
        remove_placement_group,
    )
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ranks, count = (1, 1) if single else (on.nproc, on.nnodes)
    gpus = on.device == "cuda" or (on.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    bundle = {"CPU": float(ranks * max(1, on.threads)), **({"GPU": float(ranks)} if gpus else {})}
    group = placement_group([dict(bundle) for _ in range(count)], strategy="STRICT_SPREAD")
    try:
        began = time.monotonic()
        told = began - NOTE_SECONDS + min(2, NOTE_SECONDS)
        while placement_group_table(group)["state"] != "CREATED":
            if stopped.is_set():
                raise stopped_failure()
            now = time.monotonic()
            want = f"{count} machine(s) with {_amounts(bundle)} free each; the cluster has {_machines(ray)}"
            if on.place_seconds and now - began > on.place_seconds:
                raise WorkerFailed(
                    f"no room on the Ray cluster within resources.place_seconds = {on.place_seconds}: wanted"
                    f" {want}\nWhat to do: start Ray on more machines (docs/cluster.md), lower resources.nnodes,"
                    " resources.nproc or resources.threads, or raise resources.place_seconds (0 waits for ever)",
                    "nodes",
                )
            if now - told > NOTE_SECONDS:
                note(f"waiting for {want}")
                told = now
            time.sleep(0.1)
        yield (
            count,
            [
                {
                    "num_cpus": bundle["CPU"],
                    "num_gpus": bundle.get("GPU", 0),
                    "scheduling_strategy": PlacementGroupSchedulingStrategy(group, i),
                }
                for i in range(count)
            ],
        )
    finally:
        remove_placement_group(group)  # ends the actors


def _machines(ray: Any) -> str:
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = [f"{node['NodeManagerHostname']} ({_amounts(node['Resources'])})" for node in alive]
    return f"{len(alive)}: " + ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU") if name in resources)


class _Training:
    """A stage's actors from their start to their end, and the caller's copies of what they write."""

    def __init__(
        self, ray: Any, work: Work, actors: list[Any], on: Resources, out: Path, stopped: threading.Event
    ) -> None:
        self.ray, self.work, self.actors, self.on, self.out, self.stopped = ray, work, actors, on, out, stopped
        self.run_folder = out / VOLATILE
        self.facts: list[Facts] = []
        self.note: Callable[[str], None] = lambda line: None
        self.seen: list[dict[str, tuple[int, int]]] = [{} for _ in actors]
        self.starts = [self._size(self._log(i)) for i in range(len(actors))]
        self.beat = 0
        self.ended: dict[int, int] = {}
        """Exit codes by node, in the order in which they ended."""

    def run(self, watch: Watch, one_folder: bool, note: Callable[[str], None]) -> WorkerFailed | None:
        """From the first question to the last file."""
        self.note = note
        self.facts = self._all("facts")
        self._agree()
        self._number()
        if one_folder and not all(fact["shared"] for fact in self.facts):
            del self.actors[1:], self.facts[1:]  # they end with the placement group
        checkpoint = ""
        if all(fact["shared"] for fact in self.facts):
            small: dict[str, bytes] = {}
            restore(self.out, note)
        else:
            checkpoint = newest_shared(self.out, note)
            small = {path.relative_to(self.out).as_posix(): path.read_bytes() for path in self._along()}
        self._each("prepare", [(i, small, checkpoint) for i in range(len(self.actors))])
        on = self.on.model_copy(update={"engine": "local", "nnodes": 1})
        first = self.facts[0]
        meeting = Meeting(first["address"], first["port"], 0, len(self.actors)) if len(self.actors) > 1 else None
        try:
            self._all("start", on.model_dump(), meeting)
            self._follow(watch)
        except BaseException:
            self._stop()
            raise
        watch.deliver(last=True)
        if any(self.ended.values()):
            if not self.facts[0]["shared"]:
                self._bring(lambda rel: rel == f"{VOLATILE}/choices.json")
            return self._why()
        if not self.facts[0]["shared"]:
            self._bring(lambda rel: True)
            self._all("clean")
        return None

    def _agree(self) -> None:
        own = versions(self.work.module)
        for fact in self.facts:
            if fact["versions"] != own:
                raise ValueError(
                    f"{fact['host']} has another version of what this stage computes with"
                    f" ({fact['versions']}, here {own}); install the same on all machines of the cluster"
                )

    def _number(self) -> None:
        """This machine first, if it is one of them: rank 0's files are then where people look."""
        own = self.ray.get_runtime_context().get_node_id()
        order = sorted(range(len(self.actors)), key=lambda i: self.facts[i]["id"] != own)
        self.actors, self.facts = [self.actors[i] for i in order], [self.facts[i] for i in order]

    def _along(self) -> Iterator[Path]:
        """Files in the caller's folder that the ranks need: small ones of the run, and what the spec names."""
        yield from small_files(self.run_folder)
        for text in _strings(json.loads(self.work.spec)):
            path = Path(text)
            if path.is_relative_to(self.out) and path != self.out:
                yield from (file for file in [path, *path.rglob("*")] if file.is_file())

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        """Call all nodes with the same arguments."""
        return self._each(method, [arguments] * len(self.actors))

    def _each(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Call all nodes and wait for their answers; raises what any of them raised."""
        waiting = [getattr(actor, method).remote(*own) for actor, own in zip(self.actors, arguments, strict=True)]
        while not self.stopped.is_set():
            done, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
            failed = [ref for ref in done if self._error(ref, waiting.index(ref))]
            if failed or len(done) == len(waiting):
                return self.ray.get(waiting)
        raise stopped_failure()

    def _error(self, ref: Any, node: int) -> bool:
        """False when the answer is there; raises what the node raised, in our words when it has died."""
        try:
            self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError:
            raise self._lost(node) from None
        return False

    def _follow(self, watch: Watch) -> None:
        """Until all have ended, or some have and the others were stopped."""
        failing = 0.0
        while len(self.ended) < len(self.actors):
            if self.stopped.is_set():
                raise stopped_failure()
            self._look()
            watch.look()
            if any(self.ended.values()):
                failing = failing or time.monotonic()
                if time.monotonic() - failing > LOST_SECONDS:
                    for node in self._stop():
                        raise self._lost(node)
                    return
            time.sleep(processes.POLL_SECONDS)

    def _look(self) -> None:
        """Take what the nodes that still run have to tell."""
        asked = {self.actors[i].news.remote(self.seen[i]): i for i in range(len(self.actors)) if i not in self.ended}
        while asked:
            done, _ = self.ray.wait(list(asked), num_returns=1, timeout=5)
            if not done:
                return  # a machine that is busy; one that has died is told by Ray
            node = asked.pop(done[0])
            self._error(done[0], node)
            self._take(node, self.ray.get(done[0]))

    def _take(self, node: int, news: News) -> None:
        if self.facts[node]["shared"]:
            self.starts[node] = news["start"]
        for name, (inode, offset, data) in news["parts"].items():
            if name == CURVE:
                _write_at(self.run_folder / CURVE, offset, data)
            else:
                with open(self._log(node), "ab") as file:
                    file.write(data)
            self.seen[node][name] = (inode, offset + len(data))
        for line in news["notes"]:
            self.note(f"{self.facts[node]['host']}: {line}")
        if news["beat"] > self.beat:
            self.beat = news["beat"]
            (self.run_folder / "heartbeat").touch()
        if news["code"] is not None:
            self.ended[node] = news["code"]
            if news["error"] and not self.stopped.is_set():
                with open(self._log(node), "a", encoding="utf-8") as file:
                    file.write(news["error"] + "\n")

    def _stop(self) -> list[int]:
        """End the ranks that still run, in time for a checkpoint; what they say meanwhile is kept. The nodes that do
        not answer."""
        dead: list[int] = []
        with contextlib.suppress(Exception):
            for i, actor in enumerate(self.actors):
                if i not in self.ended:
                    actor.stop.remote()
        end = time.monotonic() + guard.GRACE_SECONDS + 15 + LAST_SECONDS  # the last checkpoint goes to the bucket
        alive: list[int] = [i for i in range(len(self.actors)) if i not in self.ended]
        while alive and time.monotonic() < end:
            for i in list(alive):
                try:
                    self._take(i, self.ray.get(self.actors[i].news.remote(self.seen[i]), timeout=5))
                except Exception:
                    dead.append(i)
            alive = [i for i in alive if i not in self.ended and i not in dead]
            time.sleep(0.2)
        return dead

    def _lost(self, node: int) -> WorkerFailed:
        host = self.facts[node]["host"] if self.facts else "of the cluster"
        return WorkerFailed(
            f"{self.work.module} lost machine {node} ({host}): it, or Ray on it, has died; the others were ended and"
            f" checkpoints are kept\nWhat to do: run the same command again; it waits for {len(self.actors)} machine(s)"
            f" (resources.nnodes) and resumes\nLogs: {self.run_folder / 'logs'}",
            "nodes",
        )

    def _why(self) -> WorkerFailed:
        """The first failure that is no mere exit code, with the place of the others' logs."""
        found = [
            explain(self.work.module, code, self._log(i), self.starts[i]) for i, code in self.ended.items() if code
        ]
        failure = next((one for one in found if one.reason not in ("exit", "stopped")), found[0])
        if len(self.actors) == 1:
            return failure
        return WorkerFailed(f"{failure}\nOther machines: {self.run_folder / 'logs'}/node-*.log", failure.reason)

    def _bring(self, wanted: Callable[[str], bool]) -> None:
        """Copy what the first node made to the caller's folder."""
        first = self.actors[0]
        for rel, size in self.ray.get(first.made.remote()).items():
            if not wanted(rel):
                continue
            (self.out / rel).parent.mkdir(parents=True, exist_ok=True)
            with whole(self.out / rel) as partial, open(partial, "wb") as file:
                while file.tell() < size and (data := self.ray.get(first.read.remote(rel, file.tell()))):
                    file.write(data)

    def _log(self, node: int) -> Path:
        return self.run_folder / (LOG if node == 0 else f"logs/node-{node}.log")

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Append to the copy of a file that grows; one that was replaced is replaced here too, so that who follows it sees
    that."""
    if offset:
        with open(path, "ab") as file:
            file.write(data)
    else:
        with whole(path) as partial:
            partial.write_bytes(data)
