"""Run one function over many jobs: in this process, on local worker processes, or on a Ray cluster.

A job is a plain JSON dict and a function is named by module and name, so nothing is pickled and no worker imports the
caller's ``__main__`` (which would pull an orchestrator into every process). Each finished job leaves a marker
``done/<i>.json`` that holds the job and its result; a run that finds the marker of the same job takes the result from
it. So a killed worker costs its unfinished jobs and nothing else. Results come back in job order, whatever the engine.

Local workers are ``python -m pipeline.running.worker`` processes that speak JSON lines over a pipe. They stay for a
minute after their last job, because the next stage wants them again and starting one costs most of a second (numba,
pyarrow).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipeline.config.base import Progress, quiet
from pipeline.running.connection import connect
from pipeline.running.jobs import Job
from storage.errors import Failed
from storage.files import write_text
from storage.room import DiskFull, filled

_IDLE: list[_Worker] = []
_LOCK = threading.Lock()


class ShardFailed(Failed):
    """A job failed; the message names the function, the shard and the reason. Finished jobs keep their markers."""


def run_shards(
    fn: Callable[[Job], Job],
    jobs: Iterable[Job],
    *,
    workers: int,
    done: Path,
    engine: str = "local",
    progress: Progress = quiet,
) -> list[Job]:
    """``[fn(job) for job in jobs]``, in parallel and resumable.

    Args:
        fn: a module-level function from a JSON dict to a JSON dict; it renames its output into place before it returns.
        jobs: JSON dicts; an optional key ``shard`` names the job in errors. An iterator is drawn from while the first
            jobs already run.
        workers: processes at once; 1 or less runs in this process.
        done: directory of the markers, visible to all workers.
        engine: "local" or "ray" (the running or a new Ray cluster; needs the ``ray`` extra).
        progress: called with (finished, all that are known, "shards").
    Raises:
        ShardFailed: a job raised, or its worker died. Run again to do only what is missing.
        ValueError: an unknown engine.
    """
    if engine not in ("local", "ray"):
        raise ValueError(f"resources.engine: {engine!r} is not an engine; use local or ray")
    done.mkdir(parents=True, exist_ok=True)
    results: list[Job | None] = []
    unfinished: set[int] = set()
    least = len(jobs) if isinstance(jobs, Sequence) else 0
    missing = _missing(jobs, done, results, unfinished)
    two = list(islice(missing, 2))
    progress(len(results) - len(unfinished), max(least, len(results)), "shards")
    drive = _on_ray if engine == "ray" else _on_processes if workers > 1 and len(two) > 1 else _in_process
    for i, result in drive(_name(fn), chain(two, missing), str(done), workers):
        results[i] = result
        unfinished.discard(i)
        progress(len(results) - len(unfinished), max(least, len(results)), "shards")
    return results  # type: ignore[return-value]


def _missing(
    jobs: Iterable[Job], done: Path, results: list[Job | None], unfinished: set[int]
) -> Iterator[tuple[int, Job]]:
    """Each job that left no marker, with its number; ``results`` and ``unfinished`` are filled in as jobs are drawn."""
    for i, job in enumerate(jobs):
        result = _finished(done, i, job)
        if result is None:
            unfinished.add(i)
        results.append(result)
        if result is None:
            yield i, job


def do_job(name: str, job: Job, index: int, done: str) -> Job:
    """Run the function ``module:name`` on one job and leave its marker. Runs in whichever process the engine chose.

    Raises:
        ShardFailed: with the function, the shard and the original traceback in the message.
        DiskFull: with the path at which the disk was full.
    """
    try:
        module, _, function = name.partition(":")
        result = getattr(importlib.import_module(module), function)(job)
        write_text(Path(done) / f"{index}.json", json.dumps({"job": job, "result": result}))
    except Exception as error:
        shard = job.get("shard", index)
        if full := filled(error, Path(done)):
            raise DiskFull(f"{full} (shard {shard})") from error
        raise ShardFailed(
            f"{name} failed on shard {shard}: {type(error).__name__}: {error}\n{traceback.format_exc()}"
        ) from error
    return result


def keep_freed_memory() -> None:
    """Have the C library keep up to 256 MB of freed memory for this process: every job frees and takes the same tens of
    megabytes, and pages that come from the kernel are cleared first, which took a tenth of the time of a stage. Without
    effect where the library is not glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 256 << 20)
        library.mallopt(mmap_threshold, 64 << 20)


def _finished(done: Path, index: int, job: Job) -> Job | None:
    """The result in the job's marker, if there is one and it was left by the same job."""
    try:
        marker = json.loads((done / f"{index}.json").read_text())
        return marker["result"] if marker["job"] == json.loads(json.dumps(job)) else None
    except (OSError, ValueError, KeyError):
        return None


def _name(fn: Callable[[Job], Job]) -> str:
    if fn.__module__ == "__main__" or getattr(sys.modules.get(fn.__module__), fn.__qualname__, None) is not fn:
        raise ValueError(
            f"run_shards: {fn.__module__}.{fn.__qualname__} is not a module-level function that a worker can import"
        )
    return f"{fn.__module__}:{fn.__qualname__}"


def _in_process(name: str, jobs: Iterator[tuple[int, Job]], done: str, workers: int) -> Iterator[tuple[int, Job]]:
    keep_freed_memory()
    for i, job in jobs:
        yield i, do_job(name, job, i, done)


def _on_processes(name: str, jobs: Iterator[tuple[int, Job]], done: str, workers: int) -> Iterator[tuple[int, Job]]:
    """One thread draws the jobs, others feed a worker process each; the first failure stops all and is raised when they
    have come to rest."""
    waiting, finished = queue.SimpleQueue(), queue.SimpleQueue()
    stopped: list[Exception | None] = []

    def draw() -> None:
        try:
            for job in jobs:
                waiting.put(job)
                if stopped:
                    break
        finally:
            for _ in range(workers):
                waiting.put(None)

    def feed() -> None:
        while (item := waiting.get()) is not None and not stopped:
            i, job = item
            worker, result = _do(name, job, i, done)
            finished.put((i, result))
            with _LOCK:
                _IDLE.append(worker)

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:
            stopped.append(error)
        finished.put(None)

    try:
        for task in [draw] + [feed] * workers:
            threading.Thread(target=run, args=(task,), daemon=True).start()
        for _ in range(1 + workers):
            yield from iter(finished.get, None)
        if stopped and stopped[0] is not None:
            raise stopped[0]
    finally:
        stopped.append(None)  # also when nobody waits for the results any more


def _on_ray(name: str, jobs: Iterator[tuple[int, Job]], done: str, workers: int) -> Iterator[tuple[int, Job]]:
    """Each job is a Ray task; Ray itself starts a task again whose worker or node died."""
    ray = connect()
    from ray.exceptions import RayTaskError

    task = ray.remote(num_cpus=1, max_retries=2)(do_job)
    if not _all_see(ray, Path(done)):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        task = task.options(scheduling_strategy=here)
    pending = {task.remote(name, job, i, done): i for i, job in jobs}
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        try:
            yield pending.pop(ready[0]), ray.get(ready[0])
        except RayTaskError as error:
            for ref in pending:
                ray.cancel(ref)
            if isinstance(error.cause, DiskFull):
                raise DiskFull(str(error.cause)) from error
            raise ShardFailed(str(error.cause)) from error


def _all_see(ray: Any, done: Path) -> bool:
    """Whether every machine of the cluster sees the folder of the markers; where one does not, jobs stay on this
    machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return True
    probe = done / f".seen-{os.getpid()}"
    probe.touch()
    try:
        sees = ray.remote(num_cpus=0, max_retries=0)(os.path.exists)
        asked = [sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)) for n in nodes]
        return all(ray.get([task.remote(str(probe)) for task in asked], timeout=60))
    except ray.exceptions.RayError:
        return False  # a machine that just died
    finally:
        probe.unlink()


class _Worker:
    """One local worker process and the pipe to it."""

    def __init__(self) -> None:
        env = dict(
            os.environ,
            PYTHONPATH=os.pathsep.join(p for p in sys.path if p),
            OMP_NUM_THREADS="1",
            POLARS_MAX_THREADS="1",
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.running.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=os.getcwd(),
        )
        assert self.process.stdin and self.process.stdout
        self.jobs, self.answers = self.process.stdin, self.process.stdout

    def do(self, name: str, job: Job, index: int, done: str) -> Job:
        """Send one job and wait for its result; ShardFailed when it raised or the process died under it, _Retired when
        it was gone before."""
        try:
            self.jobs.write(json.dumps([name, job, index, done]).encode() + b"\n")
            self.jobs.flush()
            answer = self.answers.readline()
        except OSError:
            answer = b""
        if not answer:
            code = self.process.wait()
            if code == 0:
                raise _Retired
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            raise ShardFailed(
                f"{name} on shard {job.get('shard', index)}: its worker process {how} (out of memory?); run again to"
                " resume"
            )
        end, result = json.loads(answer)
        if end == "full":
            raise DiskFull(result)
        if end == "failed":
            raise ShardFailed(result)
        return result

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a job that the ended process never read is still in the pipe's buffer
            self.jobs.close()
        self.process.terminate()
        self.process.wait()
        self.answers.close()


class _Retired(Exception):
    """The worker had ended of itself, for want of work, before it saw the job."""


def _do(name: str, job: Job, index: int, done: str) -> tuple[_Worker, Job]:
    """One job on some worker: the worker, which is free again, and the result."""
    while True:
        worker = _take()
        try:
            return worker, worker.do(name, job, index, done)
        except _Retired:
            worker.close()  # it lived when it was taken; a busy machine can make that moment long
        except BaseException:
            worker.close()
            raise


def _take() -> _Worker:
    """An idle worker that still lives, or a new one."""
    while True:
        with _LOCK:
            worker = _IDLE.pop() if _IDLE else None
        if worker is None:
            return _Worker()
        if worker.process.poll() is None:
            return worker
        worker.close()


@atexit.register
def close_workers() -> None:
    """End the idle local workers now (they would end by themselves a minute after their last job)."""
    with _LOCK:
        idle, _IDLE[:] = _IDLE[:], []
    for worker in idle:
        worker.close()
