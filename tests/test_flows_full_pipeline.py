"""The main job, end to end through the command line with real processes: Prefect server, torchrun ranks, MLflow
store."""

import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
from conftest import MICRO, ROOT, SECRETS
from form_helpers import changed
from safetensors.torch import load_file
from test_readme import pipelines

from flows.dag import stage_names
from tasks.tracking.tracker import summary


def states(result):
    return {s["name"]: s["state"] for s in result["stages"]}


ASKED = tuple(name for name in stage_names() if name not in ("reward", "sample", "problems", "rl", "quantize"))
"""The stages that run without being asked for."""


def test_the_whole_dag_runs_and_says_what_it_did(first):
    assert set(states(first)) == set(ASKED) and set(states(first).values()) == {"ran"}
    for stage in first["stages"]:
        assert (
            len(stage["digest"]) == 64
            and len(stage["key"]) == 32
            and Path(stage["path"]).is_dir()
            and stage["seconds"] > 0
        )
    for name in ("pretrain", "sft", "dpo"):
        assert {"tokens_per_second", "mfu", "steps", "val_loss", "val_bits_per_byte"} <= set(
            first["by"][name]["metrics"]
        )
    assert first["mlflow"]["parent_run_id"] and first["flow_run_id"]
    card = json.loads(Path(first["by"]["shard"]["path"], "datacard.json").read_text())
    assert [stage["stage"] for stage in card["stages"]] == ["ingest", "clean", "language", "dedup", "decontaminate"]


def test_what_others_read_has_the_form_that_is_written_down_for_the_stage_s_version(first):
    """`pipeline adopt` takes what older code made: so a file that gets another form needs another version."""
    found = [line for stage in first["stages"] for line in changed(stage["name"], Path(stage["path"]))]
    assert not found, (
        "an artifact has another form; where today's code cannot read one of the old form, raise the stage's version,"
        " and write into tests/forms.toml:\n" + "\n".join(found)
    )


def test_nothing_that_is_kept_holds_a_secret_of_the_environment(home, first):
    planted = [value.encode() for value in SECRETS.values()]
    kept = [path for path in home.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(kept) > 100 and {"mlflow.db", "prefect.db", "events.jsonl", "prefect.log"} <= {
        path.name for path in kept
    }
    assert not [path for path in kept if any(secret in path.read_bytes() for secret in planted)]
    assert not any(secret.decode() in json.dumps(first) for secret in planted)


def test_a_second_run_is_all_cached_and_prefect_says_so(home, first):
    again = home.run()
    assert set(states(again).values()) == {"cached"}
    assert {s["name"]: s["digest"] for s in again["stages"]} == {s["name"]: s["digest"] for s in first["stages"]}
    assert prefect_states(home, again["flow_run_id"]) == dict.fromkeys(ASKED, "Cached")


def prefect_states(home, flow_run_id):
    import httpx

    services = json.loads((home.path / "services.json").read_text())
    api = next(s["url"] for name, s in services.items() if "prefect" in name and s.get("url"))
    api = api if api.endswith("/api") else f"{api}/api"
    body = {"task_runs": {"flow_run_id": {"any_": [flow_run_id]}}}
    for _ in range(40):
        runs = httpx.post(f"{api}/task_runs/filter", json=body, timeout=30).json()
        found = {r["name"].rsplit("-", 1)[0]: r["state"]["name"] for r in runs}
        if len(found) == len(ASKED) and not set(found.values()) & {"Running", "Pending"}:
            break
        time.sleep(0.5)
    return found


def test_one_changed_field_reruns_what_depends_on_its_bytes_only(home, first):
    plan = {p["stage"]: p for p in json.loads(home("plan", MICRO, "sft.optim.lr=2e-3", "--json").stdout)}
    assert [plan[s]["state"] for s in ("ingest", "encode", "pretrain", "sft", "dpo")] == [
        "hit",
        "hit",
        "hit",
        "miss",
        "depends",
    ]
    assert plan["sft"]["reasons"] == ["sft.optim.lr: 0.001 → 0.002"]
    changed = home.run("dpo.optim.lr=2e-4", "--until", "dpo")
    assert states(changed) == {s: "cached" for s in ASKED[: ASKED.index("dpo")]} | {"dpo": "ran"}


def test_adapters_on_weights_as_they_are_learn_from_a_teacher_of_an_earlier_run(home, first):
    teacher, spoken = (first["by"][name]["path"] for name in ("dpo", "tokenizer"))
    base = first["by"]["pretrain"]["path"]
    run = home.run(
        f"tokenizer.existing={spoken}",
        f"pretrain.init={base}",
        "pretrain.steps=0",
        "pretrain.epochs=0",
        f"sft.distill.teacher={teacher}",
        "sft.lora.rank=4",
        "--until",
        "sft",
    )
    kept, before = (load_file(Path(path) / "model.safetensors") for path in (run["by"]["pretrain"]["path"], base))
    assert kept.keys() == before.keys() and all(torch.equal(kept[name], before[name]) for name in kept)
    assert run["by"]["sft"]["metrics"]["val_divergence"] > 0
    assert {"adapter_model.safetensors", "adapter_config.json"} == {
        p.name for p in (Path(run["by"]["sft"]["path"]) / "adapter").iterdir()
    }


def test_a_rounded_form_is_asked_for_afterwards_and_costs_only_itself_and_the_release(home, first):
    small = ("quantize.bits_tokens=1000", "quantize.kl_tokens=500", "quantize.speed_tokens=8")
    run = home.run("quantize.forms=int8", "quantize.method=search", *small, "--until", "export")
    ran = {name for name, state in states(run).items() if state == "ran"}
    assert ran == {"quantize", "export"}
    costs = json.loads(Path(run["by"]["quantize"]["path"], "costs.json").read_text())
    assert "int8" in json.dumps(costs) and "int8" in Path(run["by"]["export"]["path"], "README.md").read_text()


def test_a_change_that_gives_the_same_bytes_stops_there(home, first):
    changed = home.run("clean.max_spam_density=1000", "--until", "shard")
    same = [s["name"] for s in changed["stages"] if s["digest"] == first["by"][s["name"]]["digest"]]
    assert states(changed)["clean"] == "ran"
    if "clean" in same:
        assert states(changed)["language"] == "cached"


def test_refresh_builds_again_and_the_same_bytes_keep_the_rest_cached(home, first):
    again = home.run("--refresh", "tokenizer", "--until", "encode")
    assert states(again)["tokenizer"] == "ran" and states(again)["encode"] == "cached"
    assert again["by"]["tokenizer"]["digest"] == first["by"]["tokenizer"]["digest"]


def test_a_damaged_artifact_is_set_aside_and_made_anew(home, first):
    victim = Path(first["by"]["shard"]["path"])
    next(victim.rglob("*.parquet")).write_bytes(b"broken")
    again = home("run", MICRO, "--until", "encode")
    assert "damaged" in again.stdout and "set aside" in again.stdout
    assert first["by"]["shard"]["digest"] in home("show", "shard").stdout


def test_a_bad_config_is_refused_before_anything_runs(home):
    refused = home(
        "run", "tiny", "pretrain.stpes=3", "ingest.sources=/no/such/file.jsonl", "--until", "nowhere", code=2
    )
    assert "did you mean steps" in refused.stderr and "nowhere" in refused.stderr and "Traceback" not in refused.stderr
    missing = home("run", "tiny", "ingest.sources=/no/such/file.jsonl", "sft.sources=/none.jsonl", code=2)
    assert "ingest.sources" in missing.stderr and "sft.sources" in missing.stderr


def test_a_failing_stage_is_readable_and_leaves_a_failed_run(home, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{not json\n" * 50)
    failed = home("run", MICRO, f"ingest.sources={tmp_path}/bad.jsonl", code=1)
    assert "ingest.max_bad_share" in failed.stdout and "Traceback" not in failed.stdout + failed.stderr
    assert "Change what the error names" in failed.stdout and "same command" not in failed.stdout


def test_show_lineage_verify_and_chat(home, first):
    assert first["by"]["export"]["digest"] in home("show", MICRO).stdout
    shown = home("show", "pretrain").stdout
    assert first["by"]["pretrain"]["digest"] in shown and "model.safetensors" in shown
    tree = home("lineage", f"dpo/{first['by']['dpo']['key'][:12]}").stdout
    for word in ("sft/", "pretrain/", "tokenizer/", "shard/", "ingest/", "source python-docs", "source teaching"):
        assert word in tree
    down = home("lineage", "teaching", "--down").stdout
    assert f"dpo/{first['by']['dpo']['key'][:12]}" in down and f"export/{first['by']['export']['key'][:12]}" in down
    read = home("lineage", MICRO, "--source", "teaching", "--limit", "2").stdout.splitlines()
    assert len(read) == 3 and "documents of teaching went into export/" in read[-1]
    one = home("lineage", "--document", read[0].split()[0]).stdout
    assert f"pretrain/{first['by']['pretrain']['key'][:12]}" in one and f"dpo/{first['by']['dpo']['key'][:12]}" in one
    assert "first artifact of pretrain" in home("why", f"pretrain/{first['by']['pretrain']['key']}").stdout
    assert "no document" in home("lineage", "--document", "no such text anywhere", code=1).stderr
    assert "sound" in home("verify", "tokenizer").stdout
    answer = home("chat", MICRO, "--prompt", "What is MinHash?").stdout
    assert answer.count("\n") == 1
    assert home("chat", MICRO, "--prompt", "What is MinHash?").stdout == answer
    unknown = home("chat", "nonsense", code=2)
    assert "nonsense" in unknown.stderr


def test_a_run_of_whose_making_nothing_stays_is_forgotten_in_prefect_too(home, first, prefect_url):
    from flows.processes import ask

    known = ask(prefect_url, "flow_runs/filter")
    flow = next(run for run in known if run["id"] == first["flow_run_id"])["flow_id"]
    extra = ask(prefect_url, "flow_runs/", {"flow_id": flow, "state": {"type": "CRASHED"}})["id"]
    old = home.path / "runs" / "20200101-000000-old"
    old.mkdir()
    (old / "run.json").write_text(json.dumps({"preset": "tiny", "prefect": {"flow_run_id": extra}}))
    told = home("gc", "--keep", "1000", "--history", "--dry-run").stdout
    assert "would forget run 20200101-000000-old: tiny" in told and old.is_dir()
    told = home("gc", "--keep", "1000", "--history").stdout
    assert "forgot 1 runs: 0 runs in MLflow, 1 flow runs in Prefect" in told and not old.exists()
    left = {run["id"] for run in ask(prefect_url, "flow_runs/filter")}
    assert extra not in left and first["flow_run_id"] in left


def test_what_a_command_makes_is_a_run_in_mlflow_that_read_the_model(home, first, tmp_path):
    exam = tmp_path / "pairs.jsonl"
    exam.write_text(4 * (json.dumps({"sentence_good": "The tide comes.", "sentence_bad": "Tide the comes."}) + "\n"))
    asked = ("evaluate", MICRO, "--exams", exam, "--json")
    made = json.loads(home(*asked).stdout)
    (command,) = (home.path / "commands").iterdir()
    deadline = time.time() + 120
    while not (state := summary(command)).get("complete"):
        assert time.time() < deadline, state
        time.sleep(0.2)
    client = mlflow.MlflowClient(f"sqlite:///{home.path}/mlflow/mlflow.db")
    run = client.get_run(state["stages"]["measure"]["run_id"])
    assert run.data.tags["mlflow.parentRunId"] == state["parent_run_id"]
    assert client.get_run(state["parent_run_id"]).data.tags["pipeline.part"] == "evaluate"
    assert run.data.metrics["export.exam.pairs.jsonl.n"] == 4
    release = summary(home.path / "runs" / first["run_id"])["stages"]["export"]["model_id"]
    assert [model.model_id for model in run.inputs.model_inputs] == [release]
    assert json.loads(home(*asked).stdout) == made and len(list((home.path / "commands").iterdir())) == 1


def tree_of(pid):
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("launcher", ["torchrun"])
def test_kill_9_of_the_flow_leaves_no_process_and_resumes_to_the_same_weights(home, first, launcher):
    how = [
        f"resources.launcher={launcher}",
        "resources.nproc=2",
        f"pretrain.seed={len(launcher)}",
        "pretrain.steps=16",
        "--until",
        "pretrain",
    ]
    flow = subprocess.Popen(
        home.command("run", MICRO, *how), cwd=ROOT, env=home.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    store = home.path / "store" / "pretrain"
    deadline = time.time() + 180
    while not any(store.glob("*.partial/_run/checkpoints/*")):
        assert flow.poll() is None and time.time() < deadline, "training never made a checkpoint"
        time.sleep(0.1)
    family = [p for p in tree_of(flow.pid) if "model.pretrain" in " ".join(p.cmdline())]
    assert family
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    resumed = home.run(*how)
    log = (Path(resumed["by"]["pretrain"]["path"]) / "_run" / "logs" / "launcher.log").read_text()
    assert "resumed at step" in log
    whole = home.run(*how, "--refresh", "pretrain")
    assert whole["by"]["pretrain"]["digest"] == resumed["by"]["pretrain"]["digest"]


def test_what_the_readme_looks_at_is_there_after_a_run(home, first):
    """Its commands that only look at a run (and pin it), with this run's preset in the place of the demo's."""
    said: dict[str, str] = defaultdict(str)
    for words in pipelines("README.md"):
        looks = words[0] in ("lineage", "runs", "verify", "pin", "gc", "adopt", "why", "diff")
        if looks and not {"--down", "pretrain/3fa9"} & {*words}:
            said[words[0]] += home(*(MICRO if word == "tiny" else word for word in words)).stdout
    model = first["by"]["dpo"]["key"][:12]
    assert f"dpo/{model}" in said["lineage"] and "source python-docs" in said["lineage"]
    assert first["run_id"] in said["runs"] and "pinned" in said["pin"]
    assert "sound" in said["verify"] and "nothing to adopt" in said["adopt"]
    assert f"would delete dpo/{model}" not in said["gc"], "what is pinned stays, however old"
    assert home("unpin", MICRO).stdout
