"""The launcher with real processes: torchrun, DeepSpeed's launcher, the guard, limits and readable failures.

The workers are a tiny module of standard library code; what is tested is who lives, who dies and what is said.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.config.resources import Resources
from storage.places import ROOT
from tasks.running import guard, processes
from tasks.running.command import Meeting, launcher_command
from tasks.running.environment import worker_environment
from tasks.running.failure import WorkerFailed, explain
from tasks.running.launch import launch

WORKER = """
import argparse, json, os, signal, subprocess, sys, time
parser = argparse.ArgumentParser(); parser.add_argument("--spec"); spec = json.load(open(parser.parse_args().spec))
run = os.path.join(spec["out"], "_run")
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
open(os.path.join(spec["out"], f"rank{rank}.pid"), "w").write(str(os.getpid()))
def log(step):
    if rank == 0:
        with open(os.path.join(run, "metrics.jsonl"), "a") as f: f.write(json.dumps({"step": step}) + "\\n")
do = spec.get("do", "train")
if do == "environment" and rank == 0:
    json.dump({**os.environ, "cwd_on_path": os.getcwd() in sys.path}, open(os.path.join(run, "result.json"), "w"))
elif do == "raise" and rank == world - 1:
    raise ValueError("the data has no end")
elif do == "memory":
    raise MemoryError("Unable to allocate 96 GiB")
elif do == "kill" and rank == world - 1:
    while not all(os.path.exists(os.path.join(spec["out"], f"rank{r}.pid")) for r in range(world)): time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
elif do == "exit":
    print("nothing to do"); sys.exit(7)
elif do in ("raise", "kill", "hang"):
    log(0)
    if spec.get("stray"):  # a grandchild in a session of its own that does not listen to SIGTERM
        code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
        stray = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        open(os.path.join(spec["out"], "stray.pid"), "w").write(str(stray.pid))
    time.sleep(300)
elif do == "train":
    for step in range(spec.get("steps", 3)): log(step)
    result = {"steps": spec.get("steps", 3), "world": world}
    if rank == 0: json.dump(result, open(os.path.join(run, "result.json"), "w"))
"""


@pytest.fixture(autouse=True)
def worker(tmp_path, monkeypatch):
    """The module ``tiny_worker``, importable by the workers, and a cache folder of its own."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tiny_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIPELINE_GRACE_SECONDS", "2")
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.1)


def start(tmp_path: Path, on: Resources | None = None, *, single=False, records=None, **spec):
    report = (lambda record: None) if records is None else records.append
    return launch(
        "tiny_worker", {"out": tmp_path, **spec}, tmp_path, on or Resources(device="cpu"), report, single=single
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def pids(tmp_path: Path) -> list[int]:
    return [int(path.read_text()) for path in tmp_path.glob("*.pid") if path.read_text()]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_ranks_train_and_every_record_is_reported(tmp_path, launcher, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    records: list = []
    result = start(tmp_path, Resources(nproc=2, launcher=launcher, device="cpu"), records=records, steps=50)
    assert result == {"steps": 50, "world": 2}
    assert [r["step"] for r in records] == list(range(50))
    assert "tiny_worker --spec" in (tmp_path / "_run/logs/launcher.log").read_text().splitlines()[0]
    assert not list((tmp_path / "tmp").iterdir()), "left behind for good"


def test_single_process_without_a_launcher(tmp_path):
    assert start(tmp_path, Resources(nproc=4, device="cpu"), single=True)["world"] == 1


def test_workers_see_their_environment_and_nothing_of_prefect_or_mlflow(tmp_path, monkeypatch):
    for name in ("PREFECT_API_URL", "MLFLOW_RUN_ID", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "99")
    for name in (
        "OMP_NUM_THREADS",
        "TORCHINDUCTOR_CACHE_DIR",
    ):  # torch sets the latter when something is compiled in this process
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    seen = start(tmp_path, Resources(device="cpu", threads=1), single=True, do="environment")
    assert not [name for name in seen if name.startswith(("PREFECT_", "MLFLOW_"))] and "WORLD_SIZE" not in seen
    assert (
        seen["OMP_NUM_THREADS"] == "1"
        and seen["DS_ACCELERATOR"] == "cpu"
        and seen["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    )
    assert seen["MALLOC_MMAP_THRESHOLD_"] == str(8 << 30)
    assert seen["TORCH_EXTENSIONS_DIR"].startswith(str(tmp_path / "home")) and seen[
        "TORCHINDUCTOR_CACHE_DIR"
    ].startswith(str(tmp_path / "home"))
    assert seen["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT) and not seen["cwd_on_path"]


def test_threads_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert worker_environment(Resources(nproc=1, device="cpu"))["OMP_NUM_THREADS"] == str(cores)
    assert worker_environment(Resources(nproc=cores, device="cpu"))["OMP_NUM_THREADS"] == "1"


def test_gpu_workers_get_the_gpu_allocator_and_not_the_malloc_settings(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    environment = worker_environment(Resources(nproc=2))
    assert (
        environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        and "DS_ACCELERATOR" not in environment
        and "MALLOC_TOP_PAD_" not in environment
    )
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    with pytest.raises(ValueError, match=r"resources.nproc=3"):
        launcher_command(Resources(nproc=3), ["m"], {}, Path("x"))


@pytest.mark.parametrize("single", [True, False])
def test_a_rank_that_raises_is_quoted(tmp_path, single):
    with pytest.raises(WorkerFailed, match=r"ValueError: the data has no end") as failure:
        start(tmp_path, Resources(nproc=2, device="cpu"), single=single, do="raise")
    assert failure.value.reason == "exception" and "launcher.log" in str(failure.value)
    if not single:
        assert "on rank 1" in str(failure.value)
    assert not [pid for pid in pids(tmp_path) if alive(pid)]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_killed_rank_ends_the_others(tmp_path, launcher):
    with pytest.raises(WorkerFailed, match=r"signal 9.*\n.*resources.micro_batch") as failure:
        start(tmp_path, Resources(nproc=2, launcher=launcher, device="cpu"), do="kill")
    assert failure.value.reason == "signal"
    assert len(pids(tmp_path)) == 2 and not [pid for pid in pids(tmp_path) if alive(pid)]


def test_out_of_memory_names_the_knobs(tmp_path):
    with pytest.raises(WorkerFailed, match=r"out of memory(.|\n)*resources.micro_batch") as failure:
        start(tmp_path, single=True, do="memory")
    assert failure.value.reason == "out_of_memory"


def test_exit_code_and_last_words(tmp_path):
    with pytest.raises(WorkerFailed, match=r"exit code 7(.|\n)*nothing to do"):
        start(tmp_path, single=True, do="exit")


def test_a_worker_without_a_result_is_a_failure_even_when_an_old_result_lies_there(tmp_path):
    start(tmp_path, single=True)
    with pytest.raises(WorkerFailed, match=r"without writing") as failure:
        start(tmp_path, single=True, do="idle")
    assert failure.value.reason == "no_result"


def test_a_silent_worker_is_ended(tmp_path, monkeypatch):
    silent = Resources(device="cpu").model_copy(update={"no_progress_seconds": 1})
    with pytest.raises(WorkerFailed, match=r"no progress(.|\n)*no_progress_seconds") as failure:
        start(tmp_path, silent, single=True, do="hang", stray=True)
    assert failure.value.reason == "no_progress"
    assert len(pids(tmp_path)) == 2 and not [pid for pid in pids(tmp_path) if alive(pid)]


def test_stop_all_ends_a_training_of_another_thread(tmp_path):
    failures: list = []

    def train():
        try:
            start(tmp_path, single=True, do="hang")
        except WorkerFailed as failure:
            failures.append(failure)

    thread = threading.Thread(target=train)
    thread.start()
    wait_for(lambda: pids(tmp_path))
    processes.stop_all()
    thread.join(20)
    assert [failure.reason for failure in failures] == ["stopped"] and not alive(pids(tmp_path)[0])


def test_the_wall_limit_ends_a_training(tmp_path):
    with pytest.raises(WorkerFailed, match=r"resources.wall_seconds = 1") as failure:
        start(tmp_path, Resources(device="cpu", wall_seconds=1), single=True, do="hang")
    assert failure.value.reason == "wall_limit"


def test_a_report_that_fails_does_not_stop_the_training(tmp_path):
    def report(record):
        raise ConnectionError("tracking server is down")

    assert (
        launch("tiny_worker", {"out": str(tmp_path)}, tmp_path, Resources(device="cpu"), report, single=True)["steps"]
        == 3
    )


CALLER = """
import signal, sys; from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pipeline.config.resources import Resources
from tasks.running.launch import launch
out = Path(sys.argv[1])
spec = {"out": str(out), "do": "hang", "stray": True}
launch("tiny_worker", spec, out, Resources(nproc=2, device="cpu"), lambda record: None)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_caller(tmp_path, number):
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(pids(tmp_path)) == 3 and all(path.read_text() for path in tmp_path.glob("*.pid")))
    everyone = pids(tmp_path)
    assert all(alive(pid) for pid in everyone)
    caller.send_signal(number)
    caller.wait(30)
    wait_for(lambda: not [pid for pid in everyone if alive(pid)])


@pytest.mark.parametrize(
    "command, code", [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("pass", 0)]
)
def test_the_guard_exits_with_the_code_of_its_command(command, code):
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-I", guard.__file__, str(read), sys.executable, "-c", command], pass_fds=(read,)
        )
    finally:
        os.close(read), os.close(write)
    assert done.returncode == code


def test_nodes_of_several_are_numbered_and_meet_at_one_address(tmp_path):
    on, environment, second = Resources(nproc=4, device="cpu"), {}, Meeting("127.0.0.1", 29400, 1, 2)
    command = launcher_command(on, ["m"], environment, tmp_path, second)
    assert {"--rdzv-endpoint=127.0.0.1:29400", "--nproc-per-node=4", "--node-rank=1"} < set(
        command
    ) and environment == {"GLOO_SOCKET_IFNAME": "lo"}
    on = on.model_copy(update={"launcher": "deepspeed"})
    assert {"--no_ssh", "--node_rank=1", "--master_port=29400"} < set(launcher_command(on, ["m"], {}, tmp_path, second))
    assert (tmp_path / "hostfile-1").read_text() == "node-0 slots=4\nnode-1 slots=4\n"
    some = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}  # what a cluster gave of this machine's GPUs
    assert "--include=node-0:0,1,2,3@node-1:4,5,6,7" in launcher_command(on, ["m"], dict(some), tmp_path, second)
    assert (tmp_path / "hostfile-1").read_text() == "node-0 slots=4\nnode-1 slots=8\n"
    assert "--include=localhost:4,5,6,7" in launcher_command(on, ["m"], dict(some), tmp_path)
    with pytest.raises(ValueError, match=r"nnodes=2 machines are found by Ray: set resources\.engine=ray"):
        launcher_command(Resources(nnodes=2, device="cpu"), ["m"], {}, tmp_path)
    environment = {"OMP_NUM_THREADS": "8", "HOME": "/h"}
    command = launcher_command(
        Resources(nnodes=2, nproc=4, launcher="deepspeed", hostfile="hosts", device="cpu"), ["m"], environment, tmp_path
    )
    assert "--num_nodes=2" in command and any(part.endswith("/hosts") for part in command)
    assert Path(environment["DS_ENV_FILE"]).read_text() == "OMP_NUM_THREADS=8\n"


def test_a_follow_up_error_is_not_taken_for_the_cause(tmp_path):
    log = tmp_path / "launcher.log"
    trace = 'Traceback (most recent call last):\n  File "t.py", line 1, in f\n    x()\n'
    log.write_text(
        trace + "torch.distributed.DistBackendError: connection closed by peer\n" + trace + "KeyError: 'tokens'\n"
    )
    failure = explain("model.pretrain", 1, log)
    assert "KeyError: 'tokens'" in str(failure) and "DistBackendError" not in str(failure)
    assert (
        str(pickle.loads(pickle.dumps(failure))) == str(failure)
        and pickle.loads(pickle.dumps(failure)).reason == "exception"
    )


def test_metrics_written_in_pieces_and_rewritten_are_read_whole(tmp_path):
    from tasks.running.tail import Tail

    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"step": 1}\n{"st')
    assert tail.read() == [{"step": 1}]
    with open(path, "a") as file:
        file.write('ep": 2}\nnot json\n{"step": 3}')
    assert tail.read() == [{"step": 2}] and tail.bad == 1
    assert tail.read(last=True) == [{"step": 3}]
    path.write_text(json.dumps({"step": 2}) + "\n")
    assert tail.read() == [{"step": 2}]
