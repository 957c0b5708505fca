"""Adopting an artifact of older code, and withdrawing what descends from a source, on the tiny stages."""

import json

import pytest
from stage_helpers import states

from storage.store import Store
from storage.withdrawal import rule_for

OLD = "0" * 32


@pytest.fixture
def place(tmp_path, player):
    """A home whose `first` artifact was made by other code, under another key."""
    made = player(tmp_path / "home")
    path = tmp_path / "home" / "store" / "first"
    (path / made["stages"]["first"][1]).rename(path / OLD)
    record = json.loads((path / OLD / "lineage.json").read_text())
    record["identity"]["code"] |= {"tests/stage_helpers.py": "older"}
    (path / OLD / "lineage.json").write_text(json.dumps({**record, "key": OLD}))
    return tmp_path / "home"


def test_an_artifact_of_older_code_is_adopted_and_says_so(place, player):
    assert player(place, plan=True)[0][1:3] == ["miss", ["code tests/stage_helpers.py changed"]]
    key = player(place, plan=True, adopt=f"first/{OLD}")
    store = Store(place / "store")
    record = store.lineage("first", key)
    assert record["adopted_from"]["key"] == OLD and record["adopted_from"]["differences"] == [
        "code tests/stage_helpers.py changed"
    ]
    assert record["digest"] == store.lineage("first", OLD)["digest"] and store.verify("first", key) == []
    assert (
        not (store.directory("first", key) / "_run" / "checkpoints").exists()
        and (store.directory("first", key) / "_run" / "note.json").exists()
    )
    assert set(states(player(place)).values()) == {"cached"}


def test_a_whole_run_of_older_code_is_adopted_at_once_but_for_what_differs_in_more(tmp_path, player):
    place = tmp_path / "home"
    made = player(place, third={"word": "another"})
    for stage in ("first", "second", "third"):
        path = place / "store" / stage
        (path / made["stages"][stage][1]).rename(path / OLD)
        record = json.loads((path / OLD / "lineage.json").read_text())
        record["identity"]["code"] = {"tests/stage_helpers.py": "older"}
        del record["identity"]["section"]["fail"]  # an option that came later, at its default
        record["identity"]["inputs"] = {"called otherwise": "older"}  # only what lineage says of the inputs counts
        record["inputs"] = [entry | ({"key": OLD} if entry["key"] else {}) for entry in record["inputs"]]
        (path / OLD / "lineage.json").write_text(json.dumps({**record, "key": OLD}))
    assert player(place, plan=True, adopt_all=True) == ["first", "second"]
    assert states(player(place)) == {"first": "cached", "second": "cached", "third": "ran"}


def test_adoption_names_what_else_differs_and_never_takes_other_inputs(place, player):
    refused = player(place, plan=True, adopt=f"first/{OLD}", first={"word": "other"})["error"]
    assert "first.word: word → other" in refused and "--force" in refused
    other = player(place, plan=True, adopt=f"first/{OLD}", source="web-2", force=True)["error"]
    assert "input source changed" in other and "--force" not in other
    key = player(place, plan=True, adopt=f"first/{OLD}", first={"word": "other"}, force=True)
    assert "first.word: word → other" in Store(place / "store").lineage("first", key)["adopted_from"]["differences"]


def test_a_damaged_artifact_is_not_adopted(place, player):
    (place / "store" / "first" / OLD / "sub" / "word.txt").write_text("wOrd")
    assert "content differs" in player(place, plan=True, adopt=f"first/{OLD}")["error"]


def test_what_descends_from_a_withdrawn_source_is_a_miss_until_it_is_undone(tmp_path, player):
    place = tmp_path / "home"
    player(place)
    player(place, source="web-2", first={"word": "another"}, until="first")
    store = Store(place / "store")
    one = next(r for r in store.records("first") if r["metrics"]["letters"] == 4)
    rule = rule_for(store.everywhere(), one["sources"][0]["digest"], "not ours")
    assert sorted(a[0] for a in rule["artifacts"]) == [
        "first",
        "second",
        "third",
    ], "not what the other content of the source gave"
    store.withdrawals.add(rule)
    plan = player(place, plan=True)
    assert plan[0][1] == "miss" and "was withdrawn: not ours" in plan[0][2][0]
    assert [p[1] for p in player(place, plan=True, source="web-2", first={"word": "another"}, until="first")] == ["hit"]
    assert all("not ours" in r["withdrawn"] for r in store.records("third"))
    store.withdrawals.remove(rule["what"])
    assert {p[1] for p in player(place, plan=True)} == {"hit"}


def test_a_withdrawn_artifact_takes_its_descendants_along_and_is_made_anew(tmp_path, player):
    place = tmp_path / "home"
    made = player(place)
    store = Store(place / "store")
    store.withdrawals.add(rule_for(store.everywhere(), f"first/{made['stages']['first'][1][:8]}", "wrong split"))
    assert set(states(player(place)).values()) == {"ran"}, (
        "the first is built again, and what was made from the old one too"
    )
    assert set(states(player(place)).values()) == {"cached"}, "what was made since is not withdrawn"
    store.withdrawals.add(rule_for(store.everywhere(), f"second/{made['stages']['second'][1]}", "wrong word"))
    assert states(player(place)) == {"first": "cached", "second": "ran", "third": "cached"}
