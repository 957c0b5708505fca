"""A run's stages as OpenLineage events, written by the client's own file transport."""

import json

from tracking_helpers import FlowRun, sha

from tasks.tracking.openlineage import Emitter, wanted


def test_stages_are_told_once_with_their_inputs_and_versions(tmp_path, monkeypatch):
    assert not wanted()
    told = tmp_path / "told.jsonl"
    transport = {"TYPE": "file", "LOG_FILE_PATH": str(told), "APPEND": "true"}
    for name, value in transport.items():
        monkeypatch.setenv(f"OPENLINEAGE__TRANSPORT__{name}", value)
    monkeypatch.delenv("PIPELINE_STORE", raising=False)
    run = FlowRun(tmp_path / "home", "first")
    for stage in ("ingest", "pretrain", "sft"):
        run.start(stage)
        run.finish(stage, "failed" if stage == "sft" else "ran", "out of memory" if stage == "sft" else None)
    run.finish("export", "cached")
    events = [json.loads(line) for line in (run.dir / "events.jsonl").read_text().splitlines()]
    for _ in range(2):  # a tracker that comes back tells the same
        emitter = Emitter(run.dir, "tiny")
        for event in events:
            emitter.apply(event)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    assert wanted() and lines[:6] == [
        {**a, "eventTime": b["eventTime"]} for a, b in zip(lines[6:], lines[:6], strict=True)
    ]
    assert [(e["eventType"], e["job"]["name"]) for e in lines[:6]] == [
        (kind, f"tiny.{stage}")
        for stage in ("ingest", "pretrain", "sft")
        for kind in ("START", "FAIL" if stage == "sft" else "COMPLETE")
    ]
    made, used, failed = lines[1]["outputs"][0], lines[3]["inputs"][0], lines[5]
    assert made["name"] == used["name"] == f"ingest/{sha('ingest')[:32]}" and made["namespace"] == used["namespace"]
    assert made["facets"]["version"]["datasetVersion"] == used["facets"]["version"]["datasetVersion"] == sha("ingest")
    assert [given["name"] for given in lines[1]["inputs"]] == ["docs"] and not failed["outputs"]
    assert failed["run"]["facets"]["errorMessage"]["message"] == "out of memory"
    assert (
        len({e["run"]["runId"] for e in lines}) == 3
        and len({e["run"]["facets"]["parent"]["run"]["runId"] for e in lines}) == 1
    )
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(tmp_path / "no" / "such" / "folder"))
    Emitter(run.dir, "tiny").apply(events[0])
