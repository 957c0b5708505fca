"""What a stage is wrapped in: hits, misses, two processes at once, damage, failure and leaving early, with a real
Prefect server."""

import os
import signal
import time

import pytest
from stage_helpers import built, states

ALL = {"first": "ran", "second": "ran", "third": "ran"}


def test_a_second_run_takes_everything_from_the_cache(tmp_path, player):
    place = tmp_path / "home"
    one, two = player(place), player(place)
    assert states(one) == ALL and set(states(two).values()) == {"cached"}
    assert {n: e[1:] for n, e in one["stages"].items()} == {n: e[1:] for n, e in two["stages"].items()}
    assert sorted(built(place)) == ["first", "second", "third"]
    assert not list(place.glob("store/*/*.lease")) and not list(place.glob("store/*/*.partial"))


def test_two_processes_with_the_same_key_build_it_once(tmp_path, player):
    place = tmp_path / "home"
    other = player.another()
    player.start(place, {"SLOW": "2"})
    other.start(place, {"SLOW": "2"})
    results = [player.finish(), other.finish()]
    assert sorted(built(place)) == ["first", "second", "third"]
    for name in ALL:
        assert sorted(r["stages"][name][0] for r in results) == ["cached", "ran"]
    assert any("is building this already" in line for r in results for line in r["notes"])


def test_a_builder_that_is_killed_frees_its_key_for_the_one_that_waits(tmp_path, player):
    place = tmp_path / "home"
    victim = player.another()
    victim.start(place, {"SLOW": "60"}, until="first")
    deadline = time.time() + 60
    while not built(place):
        assert time.time() < deadline
        time.sleep(0.05)
    player.start(place, until="first")
    time.sleep(1)
    os.kill(victim.process.pid, signal.SIGKILL)
    assert states(player.finish()) == {"first": "ran"}


def test_a_plan_reports_damage_and_changes_nothing(tmp_path, player):
    place = tmp_path / "home"
    made = player(place)
    path = place / "store" / "second" / made["stages"]["second"][1]
    (path / "sub" / "word.txt").write_text("longer than before")
    before = sorted(str(p) for p in place.rglob("*"))
    plan = {stage: (state, reasons) for stage, state, reasons, _ in player(place, plan=True)}
    assert plan["second"][0] == "miss" and "is damaged" in plan["second"][1][0] and "word.txt" in plan["second"][1][0]
    assert plan["first"][0] == plan["third"][0] == "hit"
    assert sorted(str(p) for p in place.rglob("*")) == before
    again = player(place)
    assert states(again) == {"first": "cached", "second": "ran", "third": "cached"} and any(
        "set aside" in line for line in again["notes"]
    )


def test_a_failed_stage_keeps_its_attempt_and_fails_alone(tmp_path, player):
    place = tmp_path / "home"
    assert "second was told to fail" in player(place, second={"fail": True})["error"]
    assert len(list(place.glob("store/second/*.partial"))) == 1 and not list(place.glob("store/second/*.lease"))
    assert states(player(place))["first"] == "cached"


def test_leaving_early_waits_for_what_was_started_beside_it(tmp_path, player):
    place = tmp_path / "home"
    assert states(player(place, until="second")) == {"first": "ran", "second": "ran"}, "the third is not started"
    assert states(player(place, until="third")) == {"first": "cached", "second": "cached", "third": "ran"}


def test_refresh_with_the_same_bytes_stops_there_and_replaces_the_artifact(tmp_path, player):
    place = tmp_path / "home"
    player(place)
    assert states(player(place, refresh=["first"])) == {"first": "ran", "second": "cached", "third": "cached"}
    assert states(player(place, first={"word": "new"})) == ALL
    assert not list(place.glob("store/*/*.replaced-*"))


def test_a_full_disk_is_told_before_the_work_with_place_and_need(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from pipeline.config.tree import load
    from storage.store import Artifact
    from tasks.running import room

    (tmp_path / "manifest.json").write_text('{"a": {"bytes": 4000000}, "b": {"bytes": 6000000}}')
    made = {"docs": Artifact("clean", "k", "d", tmp_path)}
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=9_000_000))
    with pytest.raises(OSError, match=rf"(?s)no room for dedup: it writes about 10 MB, and 9 MB are free.*{tmp_path}"):
        room.check("dedup", tmp_path, load("tiny").dedup, made)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=11_000_000))
    room.check("dedup", tmp_path, load("tiny").dedup, made)
    with pytest.raises(OSError, match="no room for sft: it writes about 80 MB"):
        room.check("sft", tmp_path, load("tiny").sft, {"base": made["docs"]})
