"""The artifact store: atomic publish, verified hits, damage, leases and fingerprints."""

import errno
import json
import multiprocessing as mp
import os
import shutil
import signal
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import storage.code
import storage.whole
from storage.code import Memo, fingerprint
from storage.digest import canonical_json, sha256_json
from storage.lease import FilePlace, Lease, LeaseLost
from storage.store import Store, StoreError

KEY = "k" * 32


def publish(store, text="hello", key=KEY, stage="clean"):
    partial = store.partial(stage, key)
    (partial / "sub").mkdir(exist_ok=True)
    (partial / "sub" / "a.txt").write_text(text)
    (partial / "_run" / "log.txt").write_text(str(time.time()))
    return store.publish(stage, key, {"inputs": [], "created": "2026"})


def test_a_published_artifact_is_found_and_its_digest_is_its_content(tmp_path):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    assert one.lookup("clean", KEY) is None
    first = publish(one)
    assert one.lookup("clean", KEY) == first
    assert publish(two, key="j" * 32).digest == first.digest, "logs, keys and places are not content"
    assert publish(two, text="other", key="i" * 32).digest != first.digest


def test_a_partial_is_never_a_hit_and_is_kept_for_resuming(tmp_path):
    store = Store(tmp_path)
    (store.partial("clean", KEY) / "half.txt").write_text("half")
    assert store.lookup("clean", KEY) is None
    assert (store.partial("clean", KEY) / "half.txt").read_text() == "half"


@pytest.mark.parametrize("harm", ["delete", "truncate", "manifest"])
def test_a_damaged_artifact_is_set_aside_with_a_clear_line(tmp_path, harm):
    lines = []
    store = Store(tmp_path, lines.append)
    path = publish(store).path
    if harm == "delete":
        (path / "sub" / "a.txt").unlink()
    elif harm == "truncate":
        (path / "sub" / "a.txt").write_text("")
    else:
        (path / "manifest.json").write_text("{")
    assert store.examine("clean", KEY).artifact is None and "damaged" in store.examine("clean", KEY).why
    assert path.is_dir(), "looking changes nothing"
    assert store.lookup("clean", KEY) is None
    assert (path.parent / f"{KEY}.damaged-1").is_dir()
    assert "damaged" in lines[0] and "made anew" in lines[0]


def test_a_flipped_byte_is_found_at_the_next_hit_though_size_and_time_are_as_they_were(tmp_path):
    store = Store(tmp_path)
    path = publish(store).path / "sub" / "a.txt"
    assert store.verify("clean", KEY) == []
    before = path.stat()
    path.write_text("hellO")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "content differs" in store.examine("clean", KEY).why and "content differs" in store.verify("clean", KEY)[0]
    assert store.lookup("clean", KEY) is None


def test_a_byte_that_changes_while_an_artifact_is_published_is_found_at_the_next_hit(tmp_path, monkeypatch):
    real = storage.store.manifest

    def hashed(root):
        listed = real(root)
        (root / "sub" / "a.txt").write_text("hellO")  # by a worker that outlived its attempt
        return listed

    monkeypatch.setattr("storage.store.manifest", hashed)
    publish(Store(tmp_path))
    assert "content differs" in Store(tmp_path).examine("clean", KEY).why


def test_content_is_hashed_once_on_a_machine_and_a_copied_store_once_more(tmp_path, monkeypatch):
    publish(Store(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    hashed = []
    real = storage.whole.sha256_file
    monkeypatch.setattr("storage.whole.sha256_file", lambda path: hashed.append(path) or real(path))
    for home, times in (("one", 0), ("two", 1), ("two", 1)):
        assert Store(tmp_path / home).ready("clean", KEY) is not None and len(hashed) == times


def test_a_new_home_is_its_owners_alone_and_an_old_one_keeps_its_permissions(tmp_path, monkeypatch):
    for name, mode in (("new", 0o700), ("shared", 0o770)):
        monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / name))
        if name == "shared":
            (tmp_path / name).mkdir()
            (tmp_path / name).chmod(mode)
        Store(tmp_path / name / "store").check()
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_find_by_stage_key_and_digest(tmp_path):
    store = Store(tmp_path)
    artifact = publish(store)
    for ref in ("clean", f"clean/{KEY[:6]}", artifact.digest[:10]):
        assert [r["key"] for r in store.find(ref)] == [KEY]
    assert store.find("nothing/abc") == []


def test_an_unusable_store_is_an_error_not_a_miss(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="PIPELINE_HOME"):
        Store(tmp_path / "file" / "store").check()


def _hold(path, ready, seconds):
    with Lease(path):
        ready.set()
        time.sleep(seconds)


def test_a_store_that_turned_read_only_gives_its_hits_and_refuses_a_run(tmp_path):
    publish(Store(tmp_path))
    (tmp_path / "clean" / KEY / "_run" / ".hashed").unlink()

    def refuse(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(arguments[0]).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), arguments[0])

    def look():
        sys.addaudithook(refuse)  # for this process alone: it cannot be taken off
        store = Store(tmp_path)
        assert store.ready("clean", KEY) and store.ready("clean", KEY), "hashed each time, as nothing can be noted"
        with pytest.raises(StoreError, match=r"Read-only.*PIPELINE_HOME"):
            store.check()

    process = mp.get_context("fork").Process(target=look)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_lease_has_one_holder_and_a_killed_holder_frees_it(tmp_path):
    path, spawn = tmp_path / "x.lease", mp.get_context("spawn")
    ready = spawn.Event()
    holder = spawn.Process(target=_hold, args=(path, ready, 60))
    holder.start()
    assert ready.wait(30)
    waits = []
    killed = False

    def waiting(text):
        nonlocal killed
        waits.append(text)
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        killed = True

    with Lease(path, waiting):
        assert killed and str(holder.pid) in waits[0]
    assert not path.exists()


def test_a_lease_of_a_lost_machine_goes_to_one_of_those_who_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(FilePlace, "stale", 0.3)
    monkeypatch.setattr(FilePlace, "poll", 0.02)
    path, holding, most, done = tmp_path / "x.lease", [], [], []
    path.write_text(json.dumps({"pid": 1, "host": "another machine"}))

    def wait():
        with Lease(path):
            holding.append(1)
            most.append(len(holding))
            time.sleep(0.02)
            holding.pop()
        done.append(1)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 8 and max(most) == 1 and not path.exists()


def test_a_lease_that_was_taken_over_is_noticed_and_left_alone(tmp_path):
    path = tmp_path / "x.lease"
    with Lease(path) as lease:
        lease.confirm()
        path.write_text("someone else's")
        with pytest.raises(LeaseLost, match="run again"):
            lease.confirm()
    assert path.read_text() == "someone else's"


def test_an_unreadable_record_does_not_stop_the_others(tmp_path):
    store = Store(tmp_path)
    publish(store)
    (publish(store, key="b" * 32).path / "lineage.json").write_text("{")
    assert [r["key"] for r in store.records()] == [KEY]


def test_replacing_an_artifact_is_never_seen_half_done(tmp_path):
    store = Store(tmp_path)
    publish(store)
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            seen.append(store.examine("clean", KEY).why)

    watcher = threading.Thread(target=look)
    watcher.start()
    for i in range(20):
        publish(store, text="x" * i)
    stop.set()
    watcher.join()
    assert not list(tmp_path.glob("clean/*.damaged-*")) and store.lookup("clean", KEY) is not None
    assert len(seen) > 20


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(
    scalars, lambda t: st.lists(t, max_size=4) | st.dictionaries(st.text(max_size=5), t, max_size=4), max_leaves=12
)


@given(trees)
def test_canonical_json_round_trips_and_ignores_order(value):
    assert json.loads(canonical_json(value)) == value
    if isinstance(value, dict):
        assert sha256_json(dict(reversed(value.items()))) == sha256_json(value)


@pytest.mark.parametrize(
    ("value", "place"),
    [({"a": {"b": [1, {2}]}}, "a.b"), ({"a": float("nan")}, "a"), ({"x": [len]}, r"x\[0\]"), ({"p": os}, "p")],
)
def test_canonical_json_refuses_with_the_place(value, place):
    with pytest.raises((TypeError, ValueError), match=place):
        canonical_json(value)


def test_what_code_means_is_remembered_until_its_file_changes(tmp_path, monkeypatch):
    (tmp_path / "pkg").mkdir()
    for name, text in (("__init__", ""), ("a", "from pkg import b\n"), ("b", "def g():\n    return 1\n")):
        (tmp_path / "pkg" / f"{name}.py").write_text(text)

    def look(memo):
        return fingerprint(["pkg.a"], tmp_path, frozenset({"pkg"}), frozenset(), memo)

    place = tmp_path / "cache" / "code.json"
    young = Memo(place)
    first = look(young)
    young.keep()
    assert not place.exists(), "changed just now: its clock may not tell the next change from this one"
    monkeypatch.setattr("storage.code.SETTLED_NS", 0)
    memo = Memo(place)
    assert look(memo) == first
    memo.keep()
    read = []
    real = storage.code._tree
    monkeypatch.setattr("storage.code._tree", lambda source: read.append(source) or real(source))
    assert look(Memo(place)) == first and not read
    path, before = tmp_path / "pkg" / "b.py", (tmp_path / "pkg" / "b.py").stat()
    path.write_text("def g():\n    return 2\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert look(Memo(place))["pkg/b.py"] != first["pkg/b.py"] and len(read) == 1
    for broken in ("{", '{"form": "x", "files": {}}', place.read_text().replace('"files": {', '"files": {"x": 3, ')):
        place.write_text(broken)
        assert set(look(Memo(place))) == set(first)


def test_the_code_fingerprint_follows_imports_and_ignores_comments(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "a.py").write_text('"""Doc."""\ndef f():\n    from pkg import b\n    return b.g()\n')
    (tmp_path / "pkg" / "b.py").write_text("def g():\n    return 1\n")
    (tmp_path / "pkg" / "c.py").write_text("x = 1\n")

    def look():
        return fingerprint(["pkg.a"], tmp_path, frozenset({"pkg"}), frozenset())

    before = look()
    assert set(before) == {"pkg/a.py", "pkg/b.py"}, "reached modules only, lazy imports too"
    (tmp_path / "pkg" / "a.py").write_text(
        '"""Other words."""\n# why\ndef f():\n    """Doc."""\n    from pkg import b\n    return b.g()\n'
    )
    assert look() == before, "comments and docstrings do not count"
    (tmp_path / "pkg" / "b.py").write_text("def g():\n    return 2\n")
    assert look()["pkg/b.py"] != before["pkg/b.py"], "a helper two imports away does"
