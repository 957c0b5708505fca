"""Ingest over workers and sources: the same bytes however it is cut, S3, the hub, built-in sources, changed files."""

import bz2
import gzip
import hashlib
import http.server
import io
import json
import lzma
import random
import threading
import typing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from test_pipeline_ingest import DOCS, LIMITS, digests, lines, put, rows, run, warc_record

import pipeline.data.ingest as ingest_module
from pipeline.config.data import IngestSection
from pipeline.data.ingest import ingest
from pipeline.evaluation.exams import read_exams
from pipeline.readers import Fault, read
from pipeline.running.executor import ShardFailed
from pipeline.sources import resolve


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))


def test_same_bytes_for_any_workers_and_every_cut_keeps_the_lines(tmp_path):
    random.seed(2)
    records = [{"text": random.randbytes(random.randrange(1, 90)).hex(), "id": i} for i in range(20_000)]
    data = lines(*records)
    put(tmp_path / "in/plain.jsonl", data)
    put(tmp_path / "in/squeezed.jsonl.gz", gzip.compress(data, 1))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "in/table.parquet", row_group_size=1000)
    for i in range(50):
        put(tmp_path / f"in/small/{i}.txt", b"text %d" % i)
    one, found = run(tmp_path, tmp_path / "in", name="one", part_mb=1)
    two, _ = run(tmp_path, tmp_path / "in", "teaching", name="two", part_mb=1, workers=2)
    again, _ = run(tmp_path, tmp_path / "in", "teaching", name="again", part_mb=1)
    assert digests(tmp_path / "two") == digests(tmp_path / "again") and len(digests(tmp_path / "two")) > 8
    assert one["docs_out"] == 60_050 and two["docs_out"] == again["docs_out"] > 60_050
    for name in ("plain.jsonl", "squeezed.jsonl.gz", "table.parquet"):
        mine = [r for r in found if r["path"] == name]
        assert [(r["line"], r["origin_id"], r["text"]) for r in mine] == [
            (i + 1, str(i), d["text"]) for i, d in enumerate(records)
        ]
    ids = {r["id"] for r in found}
    assert len(ids) == len(found) and ids == {
        r["id"] for r in run(tmp_path, tmp_path / "in", name="other", part_mb=64)[1]
    }


def test_a_share_of_a_source_and_unknown_names(tmp_path):
    path = put(tmp_path / "a.jsonl", lines(*[{"text": f"t{i}"} for i in range(2000)]))
    metrics, found = run(tmp_path, path, sample={"a.jsonl": 0.25})
    assert 400 < len(found) < 600 and metrics["dropped/sampled_out"] == 2000 - len(found)
    with pytest.raises(ValueError, match=r"ingest.sample: no source is named b; sources are a.jsonl"):
        run(tmp_path, path, sample={"b": 0.5})


def test_a_killed_run_keeps_its_finished_parts(tmp_path):
    path = put(tmp_path / "in.jsonl", lines(*[{"text": random.randbytes(50).hex()} for i in range(30_000)]))
    run(tmp_path, path, part_mb=1)
    before = digests(tmp_path / "out")
    part = tmp_path / "out/part-00001.parquet"
    stamp = part.stat().st_mtime_ns
    markers = sorted((tmp_path / "out/_run/ingest/done").glob("*.json"))
    markers[0].unlink()
    (tmp_path / "out/part-00000.parquet").unlink()
    run(tmp_path, path, part_mb=1)
    assert digests(tmp_path / "out") == before and part.stat().st_mtime_ns == stamp


@pytest.fixture
def s3(monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "x")
    client = boto3.client("s3")
    client.create_bucket(Bucket="texts")
    yield client
    server.stop()


def test_objects_of_an_s3_store(tmp_path, s3):
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["in a table"]}), table)
    objects = {
        "en/a.jsonl": lines(*DOCS),
        "en/deep/b.jsonl.gz": gzip.compress(lines(*DOCS)),
        "en/c.parquet": table.getvalue(),
        "en/x.bin": b"x",
        "zh/d.txt": "文".encode(),
    }
    for key, data in objects.items():
        s3.put_object(Bucket="texts", Key=key, Body=data)
    _, found = run(tmp_path, "s3://texts/en/", "s3://texts/zh/d.txt")
    assert [(r["source"], r["path"]) for r in found] == [("en", "a.jsonl")] * 5 + [("en", "c.parquet")] + [
        ("en", "deep/b.jsonl.gz")
    ] * 5 + [("d.txt", "d.txt")]
    assert [s.skipped[0].path for s in resolve(["s3://texts/en"], "text")] == ["x.bin"]
    s3.put_object(Bucket="texts", Key="exam/e.jsonl.gz", Body=gzip.compress(b'{"question": "q", "answer": "why"}\n'))
    assert [item["answer"] for item in read_exams(resolve(["s3://texts/exam/"], "exam")).items["answers"]] == ["why"]
    before = resolve(["s3://texts/*/a.jsonl"], "text")[0]
    assert [f.relpath for f in before.files] == ["en/a.jsonl"]
    s3.put_object(Bucket="texts", Key="en/a.jsonl", Body=lines(*DOCS[:1]))
    assert resolve(["s3://texts/*/a.jsonl"], "text")[0].digest != before.digest
    with pytest.raises(ValueError, match="NoSuchBucket"):
        resolve(["s3://nowhere/x"], "text")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as listing and downloading a data set needs."""

    FILES: typing.ClassVar = {"README.md": b"card", "data/train.jsonl": lines(*DOCS), "data/test.jsonl": lines(DOCS[0])}
    COMMIT = "0123456789" * 4

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.partition(f"/resolve/{self.COMMIT}/")[2]
        siblings = [
            {"rfilename": n, "size": len(d), "blobId": hashlib.sha1(d).hexdigest()} for n, d in self.FILES.items()
        ]
        body = (
            self.FILES.get(name)
            if name
            else json.dumps({"id": "o/d", "sha": self.COMMIT, "siblings": siblings}).encode()
        )
        if body is None or (not name and not self.path.startswith("/api/datasets/o/d")):
            self.send_error(404)
            return
        self.send_response(200)
        for header, value in (
            ("Content-Length", len(body)),
            ("ETag", f'"{hashlib.sha1(body).hexdigest()}"'),
            ("X-Repo-Commit", self.COMMIT),
        ):
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_data_sets_of_a_hub(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    _, found = run(tmp_path, "hf://o/d/data/train.jsonl")
    assert [r["text"] for r in found] == [d["text"] for d in DOCS] and found[0]["path"] == "data/train.jsonl"
    both = resolve(["hf://o/d"], "text")[0]
    assert [f.relpath for f in both.files] == ["data/test.jsonl", "data/train.jsonl"] and both.name == "d"
    with pytest.raises(ValueError, match="the hub cannot be asked"):
        resolve(["hf://o/other"], "text")
    server.shutdown()


def test_python_docs_and_the_teaching_set_are_documents(tmp_path):
    metrics, found = run(tmp_path, "python-docs", "teaching", python_docs_chars=300_000, workers=2)
    sources = {r["source"] for r in found}
    assert sources == {"python-docs", "teaching"} and metrics["docs_in"] == metrics["docs_out"] == len(
        {r["id"] for r in found}
    )
    assert sum(len(r["text"]) for r in found if r["source"] == "python-docs") <= 300_000
    first = next(
        r for r in found if r["origin_id"] == "json.decoder.JSONDecodeError" or r["origin_id"].startswith("topic ")
    )
    assert first["path"].endswith(".py") and first["line"] >= 1


def mutants(seed):
    """1,000 malformed inputs: valid files of every format, truncated, flipped, spliced with junk, and squeezed before
    or after."""
    rng = random.Random(seed)
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"] * 20, "id": list(range(40))}), table, row_group_size=10)
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    warc = (
        warc_record(b"response", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>x</p>", b"application/http") * 2
    )
    bases = {
        "jsonl": lines(*DOCS, chat),
        "json": json.dumps([*DOCS, chat], indent=1).encode(),
        "csv": b"id,text\n" + b"1,x\n2,y\n" * 5,
        "parquet": table.getvalue(),
        "txt": "正文 text\n\nmore\n".encode() * 5,
        "html": b"<html><body><p>hello</p></body></html>",
        "warc": warc,
    }
    junk = [
        b"\xff\xfe",
        b"\0" * 9,
        b'{"text": 1}\n',
        b"[[[[" * 600,
        b'"',
        b"]",
        b"}\n{",
        b"\xed\xa0\x80",
        b'{"text": "\\ud800"}\n',
        b"\n\n\n",
        b"NaN\n",
        b'{"messages": 3}\n',
        b'{"text": null}\n',
        b'{"chosen": [], "rejected": []}\n',
        b"1e999\n",
        b'{"messages": [{"role": []}]}\n',
        b'{"prompt": {}, "completion": "x"}\n',
        b'{"prompt": "q", "completion": ["x"]}\n',
        b'{"conversations": [1], "chosen": 2, "rejected": null}\n',
    ]
    squeezes = [("", bytes)] * 3 + [
        (".gz", gzip.compress),
        (".zst", zstandard.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
    ]
    for i in range(1000):
        kind = rng.choice(sorted(bases))
        suffix, squeeze = rng.choice(squeezes)
        data = mangle(rng, bases[kind], junk)
        data = squeeze(data)
        if rng.random() < 0.3:
            data = mangle(rng, data, junk)
        yield f"{i:04d}.{kind}{suffix}", data


def mangle(rng, data, junk):
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(data) + 1)
        action = rng.randrange(4)
        if action == 0:
            data = data[:at]
        elif action == 1 and at < len(data):
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif action == 2:
            data = data[:at] + rng.choice(junk) + data[at:]
        else:
            data = data[:at] + data[at + rng.randrange(20) :]
    return data


def test_a_thousand_malformed_inputs_are_all_accounted_for(tmp_path):
    for name, data in mutants(7):
        put(tmp_path / "in" / name, data)
    metrics, found = run(tmp_path, tmp_path / "in")
    dropped = sum(v for k, v in metrics.items() if k.startswith("dropped/"))
    assert metrics["docs_in"] == metrics["docs_out"] + dropped and metrics["docs_out"] == len(found)
    with_document = {r["path"] for r in found}
    assert len(with_document) > 500
    for file in resolve([str(tmp_path / "in")], "text")[0].files:
        form = file.relpath.split(".")[1].replace("txt", "text")
        records = [r for _, r in read({"format": form, "location": file.location, "relpath": file.relpath, **LIMITS})]
        assert records and (
            file.relpath in with_document or any(isinstance(r, Fault) or not getattr(r, "text", None) for r in records)
        ), file.relpath
    for row in found:
        row["text"].encode()


def test_a_file_replaced_while_ingest_reads_it_is_an_error_though_it_is_put_back(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*DOCS))
    sources, real = resolve([str(path)], "text"), ingest_module.read

    def read_another(piece):
        kept = path.rename(tmp_path / "kept")
        path.write_bytes(lines({"text": "never named"}))
        yield from real(piece)
        kept.replace(path)

    monkeypatch.setattr(ingest_module, "read", read_another)
    with pytest.raises(ShardFailed, match=r"a\.jsonl: was changed or replaced"):
        ingest(IngestSection(), sources, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet"))
    monkeypatch.setattr(ingest_module, "read", real)
    ingest(IngestSection(), resolve([str(path)], "text"), tmp_path / "out")
    assert "never named" not in str(rows(tmp_path / "out"))
