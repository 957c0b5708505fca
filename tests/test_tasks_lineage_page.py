"""The lineage page: everything is on it, nothing overlaps, links lead to runs, and odd text stays text."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

from pages_helpers import EVIL, Page

from pipeline.pages.lineage.layout import HEIGHT, WIDTH, layout, paths
from pipeline.pages.lineage.page import graph, page
from pipeline.pages.lineage.records import ancestry, headline, note


def record(stage: str, *inputs: str, **more) -> dict:
    """A record; an input "@name" comes from outside."""
    given = [
        (
            {
                "name": "sources",
                "stage": "source",
                "key": "",
                "digest": "5" * 64,
                "sources": [{"name": i[1:], "digest": "5" * 64, "files": 2, "bytes": 9}],
            }
            if i.startswith("@")
            else {"name": i, "stage": i, "key": f"key-{i}", "digest": f"{i}-digest-0123456789"}
        )
        for i in inputs
    ]
    return {
        "stage": stage,
        "key": f"key-{stage}",
        "digest": f"{stage}-digest-0123456789",
        "inputs": given,
        "section": {"lr": 0.1},
        "metrics": {},
        "state": "ran",
        "seconds": 1.0,
        "run_id": f"run-{stage}",
        **more,
    }


PIPELINE = [
    record("ingest", "@docs", state="cached"),
    record("clean", "ingest"),
    record("language", "clean"),
    record("dedup", "language"),
    record("decontaminate", "dedup", "@exams"),
    record("shard", "decontaminate"),
    record("tokenizer", "shard"),
    record("encode", "shard", "tokenizer"),
    record("pretrain", "encode", "tokenizer", metrics={"val_bits_per_byte": 1.234}, model_id="m-1"),
    record("sft", "pretrain", "@chats"),
    record("dpo", "sft", "@preferences"),
    record("export", "dpo"),
    record("evaluate", "pretrain", "sft", "dpo", "encode", "@exams"),
]


def link(run_id: str) -> str:
    return f"http://server/#/experiments/1/runs/{run_id}"


def test_every_stage_source_digest_and_link_is_on_the_page():
    text = page(PIPELINE, "tiny", link)
    for entry in PIPELINE:
        assert (
            link(entry["run_id"]) in text
            and entry["digest"][:12] in text
            and f'id="{entry["stage"]}"' in text
            and f'href="#{entry["stage"]}"' in text
        )
    assert all(name in text for name in ("docs", "exams", "chats", "preferences", "1.234 val bits per byte", "cached"))


def test_the_picture_is_well_formed_and_needs_nothing_from_outside():
    text = page(PIPELINE, "tiny", lambda run_id: None)
    svg = ElementTree.fromstring(re.search(r"<svg.*?</svg>", text, re.S)[0])
    assert len(svg.findall(".//{*}path")) == len(graph(PIPELINE)[1]) == 22
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"} and "<script" not in text
    assert "prefers-color-scheme: dark" in text


def test_no_two_boxes_overlap_and_the_picture_holds_them():
    nodes, edges = graph(PIPELINE)
    plan = layout(list(nodes), edges)
    boxes = {name: plan.places[name] for name in nodes}
    for (_, (ax, ay)), (_, (bx, by)) in itertools.combinations(boxes.items(), 2):
        assert abs(ax - bx) >= WIDTH or abs(ay - by) >= HEIGHT
    assert all(0 <= x <= plan.width - WIDTH and 0 <= y <= plan.height - HEIGHT for x, y in boxes.values())
    for a, b in edges:  # left to right, the first row before the second
        assert (boxes[a][1] > plan.end, boxes[a][0]) < (boxes[b][1] > plan.end, boxes[b][0])


def test_lines_between_the_rows_stay_in_the_picture_and_off_the_boxes():
    """However many edges cross the fold: each has a lane of its own."""
    chain = [record("s0", "@in"), *(record(f"s{i}", *(f"s{k}" for k in range(i))) for i in range(1, 14))]
    nodes, edges = graph(chain)
    plan = layout(list(nodes), edges)
    second = min(y for y in (plan.places[name][1] for name in nodes) if y > plan.end)
    around = [path for path in paths(plan, edges) if "V" in path]
    assert len(around) > 20
    for path in around:
        across = [float(x) for x in re.findall(r"H(-?[\d.]+)", path)]
        assert min(across) >= 0 and max(across) <= plan.width
        between = re.search(r"V\d+ Q\d+ (\d+)", path)
        assert between and plan.end < int(between[1]) < second


def test_ancestry_keeps_what_a_model_descends_from():
    assert [r["stage"] for r in ancestry(PIPELINE, "encode")] == [
        "ingest",
        "clean",
        "language",
        "dedup",
        "decontaminate",
        "shard",
        "tokenizer",
        "encode",
    ]
    assert (
        "dpo" not in [r["stage"] for r in ancestry(PIPELINE, "sft")] and ancestry(PIPELINE, "sft")[-1]["stage"] == "sft"
    )


def test_hostile_text_stays_text():
    hostile = record("ingest", f"@{EVIL}", section={"path": EVIL}, metrics={"docs_out": 1}, run_id=EVIL, state="failed")
    made = Page(page([hostile, record(EVIL, "ingest")], EVIL, lambda run_id: None))
    made.is_whole_and_alone()
    assert made.words.count(EVIL.split()[0][:8]) >= 4  # the title, the source, the setting, the run
    text = note(None, [record(EVIL, "ingest", digest="ab" * 32)], link, link)
    assert "<script" not in text.replace("\\<script", "") and len(text.splitlines()) == 5


def test_notes_link_upstream():
    sft = next(r for r in PIPELINE if r["stage"] == "sft")
    text = note(sft, PIPELINE, link, lambda model_id: f"#/models/{model_id}")
    assert f"[run]({link('run-pretrain')})" in text and "[model](#/models/m-1)" in text and "chats" in text
    table = note(None, PIPELINE, link, link)
    assert all(f"| {r['stage']} |" in table for r in PIPELINE)


def test_headlines():
    assert headline({"metrics": {"docs_out": 12345, "val_loss": 1.5}}) == "1.5 val loss"
    assert headline({"metrics": {"headline": "81% preferred", "steps": 3}}) == "81% preferred"
    assert (
        headline({"metrics": {"wins": 3}}) == "3 wins"
        and headline({"metrics": {"ok": True}}) == ""
        and headline({}) == ""
    )


def test_a_lone_stage_and_an_empty_run_have_a_page():
    assert "ingest" in page([record("ingest")], "t", link)
    assert "<svg" in page([], "t", link)
