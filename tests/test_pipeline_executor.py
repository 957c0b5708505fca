"""The executor: order, resume, a worker killed with -9, readable errors; the same on Ray when it is installed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.running import executor
from pipeline.running.executor import ShardFailed, run_shards


def square(job):
    """Append a line to the log for each time that it runs, then do what the job says."""
    with open(job["log"], "a") as log:
        log.write(f"{job['n']}\n")
    if job.get("kill") and not Path(job["kill"]).exists():
        Path(job["kill"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job.get("fail"):
        raise RuntimeError("disk on fire")
    print("a job may print")
    return {"square": job["n"] ** 2}


def jobs_for(path: Path, n: int = 6, **extra) -> list[dict]:
    return [{"n": i, "log": str(path / "log"), "shard": f"shard-{i}", **extra.get(f"job{i}", {})} for i in range(n)]


def runs(path: Path) -> list[int]:
    return sorted(int(line) for line in (path / "log").read_text().split())


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_job_order_and_finished_jobs_are_not_redone(tmp_path, workers):
    seen = []
    jobs = jobs_for(tmp_path)
    for _ in range(2):
        results = run_shards(square, jobs, workers=workers, done=tmp_path / "done", progress=lambda *a: seen.append(a))
        assert results == [{"square": i * i} for i in range(6)]
    assert runs(tmp_path) == list(range(6))
    assert seen[0] == (0, 6, "shards") and seen[-1] == (6, 6, "shards")


def test_a_changed_job_is_done_again(tmp_path):
    run_shards(square, jobs_for(tmp_path), workers=1, done=tmp_path / "done")
    run_shards(square, jobs_for(tmp_path, job2={"n": 7}), workers=1, done=tmp_path / "done")
    assert runs(tmp_path) == [0, 1, 2, 3, 4, 5, 7]


def test_killed_worker_is_named_and_a_rerun_finishes(tmp_path):
    jobs = jobs_for(tmp_path, job3={"kill": str(tmp_path / "killed")})
    with pytest.raises(ShardFailed, match=r"shard-3.*killed by signal 9"):
        run_shards(square, jobs, workers=2, done=tmp_path / "done")
    finished = {int(p.stem) for p in (tmp_path / "done").glob("*.json")}
    assert 3 not in finished and finished
    before = len(runs(tmp_path))
    assert run_shards(square, jobs, workers=2, done=tmp_path / "done") == [{"square": i * i} for i in range(6)]
    assert len(runs(tmp_path)) - before == 6 - len(finished)


@pytest.mark.parametrize("workers", [1, 2])
def test_error_names_function_shard_and_reason(tmp_path, workers):
    with pytest.raises(ShardFailed, match=r"square failed on shard shard-4: RuntimeError: disk on fire"):
        run_shards(square, jobs_for(tmp_path, job4={"fail": True}), workers=workers, done=tmp_path / "done")


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_are_drawn_while_the_first_ones_run(tmp_path, workers):
    def jobs():
        yield from jobs_for(tmp_path, 3)
        while not (tmp_path / "done/0.json").exists():  # waits for ever unless the first job is at work already
            time.sleep(0.01)
        yield jobs_for(tmp_path, 4)[3]

    for _ in range(2):
        assert run_shards(square, jobs(), workers=workers, done=tmp_path / "done") == [
            {"square": i * i} for i in range(4)
        ]
    assert runs(tmp_path) == [0, 1, 2, 3]

    def broken():
        yield from jobs_for(tmp_path, 3)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        run_shards(square, broken(), workers=workers, done=tmp_path / "other")


def test_unfit_functions_and_engines_are_refused(tmp_path):
    with pytest.raises(ValueError, match="module-level"):
        run_shards(lambda job: job, [{}], workers=1, done=tmp_path / "done")
    with pytest.raises(ValueError, match=r"resources\.engine"):
        run_shards(square, [{}], workers=1, done=tmp_path / "done", engine="spark")


def ends(pid: int, seconds: int) -> bool:
    for _ in range(10 * seconds):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_workers_end_with_their_parent(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from pipeline.running import executor;"
        " from pipeline.data.documents import parts\n"
        "worker = executor._take(); print(worker.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert ends(int(done.stdout), seconds=10), "the worker outlived its parent"


def test_ray_cluster_of_two_nodes_leaves_the_same_markers(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        ray.init(
            address=cluster.address,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
            log_to_driver=False,
        )
        jobs = jobs_for(tmp_path, job2={"kill": str(tmp_path / "killed")})  # Ray starts the job again elsewhere
        assert run_shards(square, jobs, workers=2, done=tmp_path / "done", engine="ray") == [
            {"square": i * i} for i in range(6)
        ]
        markers = {p.name: json.loads(p.read_text())["result"] for p in (tmp_path / "done").glob("*.json")}
        assert markers == {f"{i}.json": {"square": i * i} for i in range(6)}
        with pytest.raises(ShardFailed, match=r"shard-1.*disk on fire"):
            run_shards(
                square, jobs_for(tmp_path, job1={"fail": True}), workers=2, done=tmp_path / "again", engine="ray"
            )
    finally:
        ray.shutdown()
        cluster.shutdown()


def teardown_module():
    executor.close_workers()


@pytest.mark.parametrize("gone", [True, False])
def test_a_worker_that_ended_for_want_of_work_while_it_was_taken_is_replaced(tmp_path, monkeypatch, gone):
    take, calls = executor._take, itertools.count()

    def late():
        worker = take()
        if next(calls) == 0:
            worker.close()
            pipe = subprocess.PIPE
            worker.process = subprocess.Popen([sys.executable, "-c", ""], stdin=pipe, stdout=pipe)
            worker.jobs, worker.answers = worker.process.stdin, worker.process.stdout
            if gone:
                worker.process.wait()  # the pipe is broken before the job is written, not after
        return worker

    monkeypatch.setattr(executor, "_take", late)
    assert run_shards(square, jobs_for(tmp_path), workers=2, done=tmp_path / "done") == [
        {"square": i * i} for i in range(6)
    ]
    assert runs(tmp_path) == list(range(6)) and next(calls) > 6
