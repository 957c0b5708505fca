"""The gate, the champion that the store knows, and ``pipeline promote``."""

import json

import pytest

from flows.cli import main
from pipeline.config.tree import ConfigError, load
from storage.champions import Champions, NoChampion, champion
from storage.store import Store
from tasks.running.gate import Candidate, decide, judge

SCORES = {
    "base.place": 0, "base.bits_per_byte": 1.5, "base.choices": 0.25, "base.choices.n": 100,
    "sft.place": 1, "sft.bits_per_byte": 1.6, "sft.choices": 0.5, "sft.choices.n": 100, "sft.choices.chance": 0.25,
    "sft.choices.low": 0.4, "sft.answers_heldout": 0.8, "sft.answers_heldout.n": 50,
    "sft.exam.cmmlu": 0.3, "sft.exam.cmmlu.n": 10, "sft.exam.cmmlu.chance": 0.25,
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    monkeypatch.delenv("PIPELINE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return Store(tmp_path / "store")


def made(store, name, stage="sft"):
    """A model in the store; its reference."""
    key = name * 32
    partial = store.partial(stage, key)
    (partial / "config.json").write_text(f'{{"name": "{name}"}}')
    record = {"inputs": [], "sources": [{"name": "book", "digest": "d" * 64}], "created": "2026", "run": f"run-{name}"}
    artifact = store.publish(stage, key, record)
    return {"stage": stage, "key": key, "digest": artifact.digest}


def candidate(model, evaluated="e1", **changed):
    return Candidate("tiny", model, SCORES | changed, evaluated)


def held(gate, who, store):
    return [condition["held"] for condition in judge(gate, who, store).conditions]


def test_conditions_hold_or_not_by_their_numbers(place):
    who = candidate(made(place, "a"))
    gate = ["heldout >= 0.8", "heldout > 80%", "choices.low >= .3", "choices > chance + 0.3", "not withdrawn"]
    with pytest.raises(ValueError, match=r"\.3"):
        judge(gate, who, place)
    gate[2] = "choices.low >= 0.3"
    assert held(gate, who, place) == [True, False, True, False, True]
    assert held(["bits_per_byte <= base + 0.1", "bits_per_byte <= before + 0.05"], who, place) == [True, False]
    assert held(["cmmlu >= 30%", "cmmlu > chance", "preferences >= 0"], who, place) == [True, True, False]


def test_the_champion_moves_only_when_all_hold_and_is_what_later_ones_must_beat(place):
    gate = ["bits_per_byte <= champion + 0.02", "choices >= champion"]
    first = decide(gate, candidate(made(place, "a")), "r1", place)
    assert first["moved"] and "no champion yet" in first["conditions"][0]["why"]
    worse = decide(gate, candidate(made(place, "b"), "e2", **{"sft.bits_per_byte": 1.63}), "r2", place)
    assert not worse["moved"] and "champion has 1.6" in worse["conditions"][0]["why"]
    assert champion("tiny", place).name == "a" * 32
    other = decide(gate, candidate(made(place, "c"), "e3", **{"sft.choices.n": 90}), "r3", place)
    assert not other["moved"] and "of 90 items" in other["conditions"][1]["why"]
    better = decide(gate, candidate(made(place, "d"), "e4", **{"sft.bits_per_byte": 1.61}), "r4", place)
    assert better["moved"] and better["before"] == first["model"]
    assert champion("anywhere/tiny.toml", place).name == "d" * 32
    assert set(Champions(place).kept()) == {("sft", "a" * 32), ("sft", "d" * 32)}


def test_a_run_that_is_repeated_says_the_same(place):
    gate = ["bits_per_byte <= champion"]
    first, second = made(place, "a"), made(place, "b")
    decide(gate, candidate(first), "r1", place)
    before = decide(gate, candidate(second, "e2", **{"sft.bits_per_byte": 1.4}), "r2", place)
    again = decide(gate, candidate(second, "e2", **{"sft.bits_per_byte": 1.4}), "r3", place)
    assert not again["moved"] and again["conditions"] == before["conditions"]
    assert judge(gate, candidate(second, "e2"), place).champion == f"sft/{'a' * 12}"
    lost = decide(gate, candidate(first), "r4", place)
    assert not lost["moved"] and "champion has 1.4" in lost["conditions"][0]["why"]


def test_a_withdrawn_model_is_no_champion(place):
    model = made(place, "a")
    rule = {"what": "book", "reason": "licence", "created": "2026", "sources": ["d" * 64], "files": [], "artifacts": []}
    decide([], candidate(model), "r1", place)
    place.withdrawals.add(rule)
    assert held(["not withdrawn"], candidate(model, "e2"), place) == [False]
    with pytest.raises(NoChampion, match=r"withdrawn: licence.*--rollback"):
        champion("tiny", place)
    with pytest.raises(NoChampion, match="no champion yet"):
        champion("medium", place)


def test_a_torn_line_loses_no_other_decision(place):
    decide([], candidate(made(place, "a")), "r1", place)
    with open(place.root / "champions" / "tiny.jsonl", "a") as file:
        file.write('{"preset": "ti')
    decide([], candidate(made(place, "b"), "e2"), "r2", place)
    assert [d["model"]["key"][0] for d in Champions(place).history("tiny")] == ["a", "b"]


def test_every_wrong_condition_is_told_at_once():
    wrong = ["heldot >= 0.8", "heldout => 1", "not good", "choices.acc > 0", "choices > champion * 2", "mine.acc > 0.5"]
    with pytest.raises(ConfigError) as error:
        load("tiny", [f"evaluate.gate={json.dumps(wrong)}", "evaluate.sources=some/mine"])
    lines = str(error.value).splitlines()
    assert len(lines) == 5 and all(line.startswith("evaluate.gate  ") for line in lines)
    assert "did you mean heldout" in lines[0] and "mine" in lines[0]
    assert load("tiny", ["evaluate.gate=heldout.zh >= 0.8,not withdrawn"]).evaluate.gate[1] == "not withdrawn"


def run_of(home, name, model, gate=(), **changed):
    """A finished run as its directory tells it."""
    directory = home / "runs" / name
    directory.mkdir(parents=True)
    stages = [
        {"name": model["stage"], "state": "ran", "key": model["key"], "digest": model["digest"], "metrics": {}},
        {"name": "evaluate", "state": "ran", "key": f"e-{name}", "digest": "e", "metrics": SCORES | changed},
    ]
    (directory / "run.json").write_text(json.dumps({"preset": "tiny", "config": {"evaluate": {"gate": list(gate)}}}))
    (directory / "summary.json").write_text(json.dumps({"preset": "tiny", "stages": stages}))


def promote(capsys, *args):
    with pytest.raises(SystemExit) as exit_:
        main(["promote", *args])
    out, err = capsys.readouterr()
    return exit_.value.code, out + err


def test_promote_decides_by_hand_and_goes_back_without_mlflow(place, tmp_path, capsys):
    run_of(tmp_path, "20260101-000000-aaaaaa", made(place, "a"))
    run_of(tmp_path, "20260102-000000-bbbbbb", made(place, "b"), gate=["heldout >= 0.9"])
    code, said = promote(capsys, "20260101-000000-aaaaaa")
    assert code == 0 and "champion of tiny: sft/aaaa" in said and "MLflow could not be told" in said
    code, said = promote(capsys, "tiny")
    assert code == 1 and "✗ heldout >= 0.9: heldout is 0.8" in said and "--force" in said
    code, said = promote(capsys, "sft/bbbb", "--force", "--dry-run")
    assert code == 2 or champion("tiny").name == "a" * 32
    code, said = promote(capsys, "tiny", "--force")
    assert code == 0 and champion("tiny").name == "b" * 32
    code, said = promote(capsys, "--rollback", "--dry-run")
    assert code == 0 and champion("tiny").name == "b" * 32
    code, said = promote(capsys, "tiny", "--rollback")
    assert code == 0 and "sft/aaaaaaaaaaaa instead of sft/bbbbbbbbbbbb" in said
    assert champion("tiny").name == "a" * 32
    code, said = promote(capsys)
    assert "rollback" in said and said.count("moved") == 3
    assert promote(capsys, "tiny", "--rollback")[0] == 2
    assert promote(capsys, "nothing")[0] == 2
