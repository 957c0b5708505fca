"""What keeps a home going: a clock that is set back, or that was ahead, loses no order, no service and no hit; a server
that dies under a run is started again."""

from __future__ import annotations

import os
import sys
import time

import psutil
import pytest

from flows.processes import alive, end, ensure, entries, forget, revive
from storage.store import Store
from tasks.running.run import new_run_id

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """``clock(seconds)`` sets this process's clock so far off."""
    real, local, utc, form = time.time, time.localtime, time.gmtime, time.strftime
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))

    def set_to(off: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + off)
        monkeypatch.setattr(time, "strftime", lambda shape, when=None: form(shape, when or local(real() + off)))
        monkeypatch.setattr(time, "gmtime", lambda seconds=None: utc(real() + off if seconds is None else seconds))

    return set_to


def test_runs_sort_as_they_came_though_the_clock_goes_back(clock, tmp_path):
    names = []
    for off in (0.0, -HOUR, -HOUR, 24 * HOUR, 0.0):
        clock(off)
        names.append(new_run_id())
        (tmp_path / "runs" / names[-1]).mkdir(parents=True)
    assert names == sorted(names) and len(set(names)) == 5
    (tmp_path / "runs" / "99-nonsense").mkdir()
    assert new_run_id()[8] == "-"


def test_a_service_is_known_again_after_the_clock_was_set(tmp_path, monkeypatch):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    entry = ensure(tmp_path, "worker x", 0, lambda port, log: (command, {}), wait=False)
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) - HOUR)  # as psutil tells it then
    try:
        assert ensure(tmp_path, "worker x", 0, lambda port, log: (command, {}), wait=False) == entry
    finally:
        process = psutil.Process(entry["pid"])
        process.kill()
    process.wait()
    assert not alive(entry)


def test_a_service_that_died_is_started_again_and_one_that_was_stopped_is_not(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"

    def start(port, log):
        return [sys.executable, "-c", f"{code}; time.sleep(60)"], {}

    first = ensure(tmp_path, "prefect", 4299, start, wait=False)
    assert not revive(tmp_path, "prefect", 4299, start)
    while not (below := psutil.Process(first["pid"]).children()):
        pass
    os.kill(first["pid"], 9)
    os.waitpid(first["pid"], 0)
    assert revive(tmp_path, "prefect", 4299, start)
    second = entries(tmp_path)["prefect"]
    assert alive(second) and second["pid"] != first["pid"] and second["port"] == first["port"]
    gone = not below[0].is_running() or below[0].status() == psutil.STATUS_ZOMBIE
    assert gone, "it would hold the port"
    end(second["pid"])
    forget(tmp_path, "prefect")
    assert not revive(tmp_path, "prefect", 4299, start) and not entries(tmp_path)


def test_a_store_hits_whatever_the_clock_said_when_it_was_filled(clock, tmp_path):
    store, key = Store(tmp_path / "store"), "k" * 32
    for number, off in enumerate((0.0, -HOUR, 24 * HOUR)):
        clock(off)
        stage = f"stage{number}"
        (store.partial(stage, key) / "a.txt").write_text("hello")
        os.utime(store.partial(stage, key) / "a.txt", (time.time() + 9 * HOUR, time.time() + 9 * HOUR))
        with store.lease(stage, key) as lease:
            lease.confirm()
            store.publish(stage, key, {"inputs": [], "created": time.strftime("%Y", time.gmtime()), "run": "r"})
    clock(-2 * HOUR)
    assert all(store.ready(f"stage{number}", key) for number in range(3))
    assert len(list(Store(tmp_path / "store").records())) == 3
    path = store.directory("stage2", key) / "a.txt"
    before = path.stat()
    path.write_text("hellO")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.ready("stage2", key) is None
