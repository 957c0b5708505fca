"""The final shards: held out by id, mixed by weight, in one seeded order whatever the input's division; with a card
that says so."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.data import ShardSection
from pipeline.data.documents import SCHEMA, write_part
from pipeline.data.shard import shard
from storage.digest import digest_of, manifest


def documents(path, rows, per_part=1000):
    """A document artifact of (source, kind, text) rows."""
    path.mkdir(parents=True)
    made = [
        {
            "id": hashlib.sha256(f"{i}".encode()).hexdigest()[:32],
            "text": text,
            "lang": "zh" if i % 3 == 0 else "en",
            "source": source,
            "path": "p",
            "line": i,
            "origin_id": None,
            "kind": kind,
        }
        for i, (source, kind, text) in enumerate(rows)
    ]
    for index, start in enumerate(range(0, len(made), per_part)):
        write_part(path, index, pa.Table.from_pylist(made[start : start + per_part], SCHEMA))
    return made


def read(out, split):
    return [row for part in sorted((out / split).glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def digests(out):
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and "_run" not in p.parts
    }


def test_split_order_and_bytes(tmp_path):
    rows = [("wiki" if i % 2 else "news", "text", f"文 {i} " + "words " * (i % 300)) for i in range(3000)]
    made = documents(tmp_path / "docs", rows)
    documents(tmp_path / "redivided", rows, per_part=170)
    for name, source, workers in (("one", "docs", 1), ("two", "docs", 2), ("other", "redivided", 1)):
        metrics = shard(
            ShardSection(val_share=0.1, part_mb=1, row_group_rows=100),
            tmp_path / source,
            tmp_path / name,
            workers=workers,
        )
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "other")
    train, val = read(tmp_path / "one", "train"), read(tmp_path / "one", "val")
    assert (
        200 < len(val) < 400
        and len(train) + len(val) == 3000 == metrics["docs_out"] == metrics["train_docs"] + metrics["val_docs"]
    )
    key = {row["id"]: row for row in made}
    assert all(row == key[row["id"]] for row in train + val) and len({r["id"] for r in train + val}) == 3000
    parts = sorted((tmp_path / "one/train").glob("*.parquet"))
    assert len(parts) > 1 and pq.ParquetFile(parts[0]).metadata.row_group(0).num_rows == 100
    assert pq.ParquetFile(parts[0]).schema_arrow.equals(SCHEMA)
    sources = [r["source"] for r in train[:200]]
    assert 60 < sources.count("wiki") < 140  # mixed, not one source after the other


def test_a_document_stays_where_it_is_when_others_come(tmp_path):
    rows = [("a", "text", f"t{i}") for i in range(500)]
    documents(tmp_path / "few", rows[:250])
    documents(tmp_path / "more", rows)
    for name in ("few", "more"):
        shard(ShardSection(val_share=0.2), tmp_path / name, tmp_path / f"{name}-out")
    few, more = ({r["id"] for r in read(tmp_path / f"{name}-out", "val")} for name in ("few", "more"))
    assert few < more
    shard(ShardSection(val_share=0.2, seed=1), tmp_path / "few", tmp_path / "seeded")
    assert {r["id"] for r in read(tmp_path / "seeded", "val")} != few


@pytest.mark.parametrize(
    ("rows", "train", "val"),
    [
        ([("a", "text", "t")], 1, 0),
        ([("a", "text", "t")] * 2, 1, 1),
        ([("a", "text", "t"), ("a", "chat", "c")], 1, 1),
        ([("a", "text", "t")] * 3 + [("a", "chat", "c")] * 2, 3, 2),
    ],
)
def test_small_sets_have_both_splits(tmp_path, rows, train, val):
    documents(tmp_path / "docs", rows)
    metrics = shard(ShardSection(val_share=1e-9), tmp_path / "docs", tmp_path / "out")
    assert (metrics["train_docs"], metrics["val_docs"]) == (train, val)
    metrics = shard(ShardSection(val_share=0.999999), tmp_path / "docs", tmp_path / "most")
    assert metrics["train_docs"] == 1 or len(rows) == 1
    assert shard(ShardSection(val_share=0), tmp_path / "docs", tmp_path / "none")["val_docs"] == 0


def test_weights_repeat_and_thin_training_alone(tmp_path):
    rows = [(source, "text", f"{source}{i}") for i in range(400) for source in ("double", "half", "none", "plain")]
    documents(tmp_path / "docs", rows)
    metrics = shard(
        ShardSection(val_share=0.1, weights={"double": 2, "half": 0.5, "none": 0}), tmp_path / "docs", tmp_path / "out"
    )
    train, val = read(tmp_path / "out", "train"), read(tmp_path / "out", "val")
    in_train = {s: sum(r["source"] == s for r in train) for s in ("double", "half", "none", "plain")}
    in_val = {s: sum(r["source"] == s for r in val) for s in ("double", "half", "none", "plain")}
    assert in_train["double"] == 2 * (400 - in_val["double"]) and in_train["none"] == in_val["none"] == 0
    assert 140 < in_train["half"] < 220 and in_train["plain"] == 400 - in_val["plain"]
    assert not {r["id"] for r in train} & {r["id"] for r in val}
    assert metrics["docs_in"] + metrics["changed/repeated"] - metrics["dropped/weight"] == metrics["docs_out"]
    plain, strange = ({"double": 2}, {"double": 2, "other": 50})
    for name, weights in (("with", strange), ("without", plain)):
        shard(ShardSection(weights=weights, licences=dict.fromkeys(weights, "MIT")), tmp_path / "docs", tmp_path / name)
    same = [digest_of(manifest(tmp_path / name)) for name in ("with", "without")]
    assert same[0] == same[1], "a weight of a source that is not there has no effect"
    with pytest.raises(ValueError, match=r"no document is left to train on; shard.weights"):
        shard(ShardSection(weights=dict.fromkeys(in_train, 0)), tmp_path / "docs", tmp_path / "empty")


def test_the_data_card_tells_what_is_in_it(tmp_path):
    documents(
        tmp_path / "docs",
        [("wiki", "text", f"t{i}") for i in range(50)] + [("teaching", "chat", f"c{i}") for i in range(50)],
    )
    (tmp_path / "clean").mkdir()
    earlier = {
        "docs_in": 120,
        "docs_out": 100,
        "chars_in": 9,
        "chars_out": 8,
        "dropped": {"spam": 20},
        "changed": {"html": 3, "email": 2},
    }
    (tmp_path / "clean/stats.json").write_text(json.dumps(earlier))
    shard(
        ShardSection(licences={"wiki": "CC-BY-SA-4.0"}),
        tmp_path / "docs",
        tmp_path / "out",
        history={"clean": tmp_path / "clean"},
    )
    card = json.loads((tmp_path / "out/datacard.json").read_text())
    assert card["languages"] == ["en", "zh"] and card["sources"]["wiki"]["licence"] == "CC-BY-SA-4.0"
    assert (
        card["stages"] == [{"stage": "clean", **earlier}]
        and card["splits"]["train"]["docs"] + card["splits"]["val"]["docs"] == 100
    )
    readme = (tmp_path / "out/README.md").read_text()
    assert (
        readme.startswith("---\nconfigs:")
        and "CC-BY-SA-4.0" in readme
        and "spam 20" in readme
        and "| chat | 50 |" in readme
    )
    assert "- n<1K\n---" in readme and "(email 2 documents)" in readme and "Not searched for evaluation texts" in readme
