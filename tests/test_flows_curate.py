"""The commands adopt and invalidate, on the artifacts of a sweep."""

import json

from conftest import MICRO


def plan(lab):
    found = json.loads(
        lab(
            "plan", MICRO, f"ingest.sources={lab.good}", "clean.max_spam_density=0.5", "--until", "clean", "--json"
        ).stdout
    )
    return {p["stage"]: p for p in found}


def test_adopt_takes_the_preset_of_the_run_that_made_it(lab, swept):
    clean = plan(lab)["clean"]
    assert "nothing to adopt" in lab("adopt", f"clean/{clean['key'][:12]}").stdout
    place = lab.path / "store" / "clean"
    (place / clean["key"]).rename(place / ("0" * 32))
    record = json.loads((place / ("0" * 32) / "lineage.json").read_text())
    record["identity"]["code"]["pipeline/data/clean.py"] = "older"
    (place / ("0" * 32) / "lineage.json").write_text(json.dumps({**record, "key": "0" * 32}))
    assert plan(lab)["clean"]["state"] == "miss"
    assert f"clean/{clean['key'][:12]} adopted from clean/000000000000" in lab("adopt", "clean/0000").stdout
    assert (
        plan(lab)["clean"]["state"] == "hit"
        and "adopted from clean/0000" in lab("lineage", f"clean/{clean['key'][:12]}").stdout
    )
    assert "although code pipeline/data/clean.py changed" in lab("show", f"clean/{clean['key'][:12]}").stdout
    other = lab("adopt", "clean/0000", MICRO, f"ingest.sources={lab.good}", "clean.max_spam_density=7", code=2).stderr
    assert "clean.max_spam_density: 0.5 → 7" in other and "--force" in other
    missing = lab("adopt", "clean/0000", MICRO, "ingest.sources=teaching", code=2).stderr
    assert "depends on ingest" in missing


def test_invalidate_withdraws_refuses_and_is_undone(lab, swept):
    name = json.loads(lab("lineage", "ingest", "--json").stdout)[0]["links"][0]["name"]
    assert "--reason" in lab("invalidate", name, code=2).stderr
    assert "is called so" in lab("invalidate", "no-such-source", "--reason", "x", code=2).stderr
    out = lab("invalidate", name, "--reason", "licence withdrawn").stdout
    assert "clean/" in out and "ingest/" in out
    found = plan(lab)
    assert found["ingest"]["state"] == "miss" and "licence withdrawn" in found["ingest"]["reasons"][0]
    assert "WITHDRAWN: licence withdrawn" in lab("lineage", name, "--down").stdout
    refused = lab("run", MICRO, f"ingest.sources={lab.good}", "--until", "clean", code=2)
    assert "licence withdrawn" in refused.stderr and "--undo" in refused.stderr
    assert (
        "licence withdrawn"
        in lab(
            "sweep",
            MICRO,
            f"ingest.sources={lab.good}",
            "clean.max_spam_density=1,2",
            "--until",
            "clean",
            "--metric",
            "clean.docs_out",
            code=2,
        ).stderr
    )
    assert name in lab("invalidate", "something-else", "--undo", code=2).stderr
    assert "no longer withdrawn" in lab("invalidate", name, "--undo").stdout
    assert plan(lab)["ingest"]["state"] == "hit"


def test_chat_refuses_a_withdrawn_model_unless_forced(lab, tmp_path, monkeypatch):
    import pytest

    from flows.inspect import find_model
    from storage.store import Store
    from storage.withdrawal import rule_for

    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    store = Store(tmp_path / "store")
    (store.partial("sft", "a" * 32) / "config.json").write_text("{}")
    path = store.publish(
        "sft", "a" * 32, {"inputs": [], "created": "2026", "run": "r", "sources": [{"name": "web", "digest": "d" * 64}]}
    ).path
    assert find_model("sft/aaaa") == find_model(str(path)) == path
    store.withdrawals.add(rule_for(store.everywhere(), "web", "not ours"))
    for ref in ("sft/aaaa", str(path)):
        with pytest.raises(LookupError, match="not ours"):
            find_model(ref)
        assert find_model(ref, force=True) == path
