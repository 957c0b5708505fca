"""Every format is read, every record is a document or a counted loss, and the bytes do not depend on how the work was
divided."""

import bz2
import gzip
import hashlib
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.config.data import IngestSection
from pipeline.data.ingest import ingest
from pipeline.sources import resolve

LIMITS = {"max_record": 1 << 20, "max_text": 10_000}


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))


def run(tmp_path, *specs, workers=1, name="out", **options):
    """Ingest and return (metrics, rows)."""
    out = tmp_path / name
    metrics = ingest(
        IngestSection(**{"max_bad_share": 1, **options}), resolve([str(s) for s in specs], "text"), out, workers=workers
    )
    return metrics, rows(out)


def rows(out):
    return [row for part in sorted(out.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def lines(*records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


DOCS = [{"text": f"document {i} 文档", "id": i} for i in range(5)]


@pytest.mark.parametrize(
    ("name", "squeeze"),
    [
        ("a.jsonl", lambda d: d),
        ("a.jsonl.gz", gzip.compress),
        ("a.ndjson.zst", zstandard.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
    ],
)
def test_json_lines_plain_and_compressed(tmp_path, name, squeeze):
    path = put(tmp_path / name, squeeze(lines(*DOCS[:2])) + squeeze(b"\n" + lines(*DOCS[2:])))
    metrics, found = run(tmp_path, path)
    assert metrics["docs_in"] == metrics["docs_out"] == 5
    assert [(r["text"], r["origin_id"], r["line"]) for r in found] == [
        (d["text"], str(d["id"]), i) for d, i in zip(DOCS, (1, 2, 4, 5, 6), strict=True)
    ]
    assert {(r["source"], r["path"], r["lang"], r["kind"]) for r in found} == {(name, name, None, "text")}
    assert len({r["id"] for r in found}) == 5 and all(len(r["id"]) == 32 for r in found)


def test_json_files_of_every_shape(tmp_path):
    shapes = {
        "array.json": json.dumps(DOCS).encode(),
        "pretty.json": json.dumps(DOCS, indent=2).encode(),
        "lines.json": lines(*DOCS),
        "misnamed.jsonl": json.dumps(DOCS, indent=2).encode(),
        "bom.jsonl": b"\xef\xbb\xbf" + lines(*DOCS),
        "windows.jsonl": lines(*DOCS).replace(b"\n", b"\r\n"),
        "utf16.jsonl": lines(*DOCS).decode().encode("utf-16"),
    }
    for name, data in shapes.items():
        _, found = run(tmp_path, put(tmp_path / name, data), name="out-" + name)
        assert [r["text"] for r in found] == [d["text"] for d in DOCS], name
    _, found = run(tmp_path, put(tmp_path / "one.json", json.dumps(DOCS[0], indent=2).encode()), name="out-one")
    assert [r["text"] for r in found] == [DOCS[0]["text"]]


def test_a_broken_array_element_costs_itself_alone(tmp_path):
    data = b'[\n{"text": "one, [two] {three} \\" four"},\n{"text": broken},\n{"text": "five"},\n{"text": "cut o'
    metrics, found = run(tmp_path, put(tmp_path / "a.json", data))
    assert [r["text"] for r in found] == ['one, [two] {three} " four', "five"] and [r["line"] for r in found] == [1, 3]
    assert metrics["dropped/broken_json"] == 1 and metrics["dropped/truncated_json"] == 1


def test_a_long_array_is_read_in_pieces():
    elements = [{"text": "x" * (i % 700) + '"],[{\\', "n": i} for i in range(3000)]
    from pipeline.readers.json_records import _elements

    data = json.dumps(elements).encode()
    for size in (1 << 10, 1 << 16):
        pieces = (data[i : i + size] for i in range(0, len(data), size))
        assert [r for _, r in _elements(pieces, 1 << 20)] == elements


def test_chats_become_text_through_the_chat_template(tmp_path):
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    path = put(
        tmp_path / "a.jsonl",
        lines({"instruction": "q", "output": "a"}, pair)
        + b'[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]\n',
    )
    _, found = run(tmp_path, path)
    assert [r["kind"] for r in found] == ["chat"] * 3
    assert found[0]["text"] == found[2]["text"] == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    assert "good" in found[1]["text"] and "bad" not in found[1]["text"]


def test_tables(tmp_path):
    put(tmp_path / "a.csv", 'id,text\n1,"two\nlines, and a comma"\n2,plain\n3\n4,\xff\n5,last\n'.encode("latin-1"))
    put(tmp_path / "b.tsv", b"text\tid\nx\t1\n")
    put(tmp_path / "c.csv", "\ufefftext;id\nx;1\n".encode())
    pq.write_table(
        pa.table({"text": ["a", None, "b"], "id": [1, 2, 3], "noise": [[1], [2], [3]]}),
        tmp_path / "d.parquet",
        row_group_size=1,
    )
    pq.write_table(
        pa.table({"conversations": [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]]}),
        tmp_path / "e.parquet",
    )
    (tmp_path / "f.parquet").write_bytes(b"PAR1 not really")
    metrics, found = run(tmp_path, *sorted(tmp_path.glob("?.*")))
    assert [(r["path"], r["line"], r["origin_id"], r["text"][:12]) for r in found] == [
        ("a.csv", 2, "1", "two\nlines, a"),
        ("a.csv", 4, "2", "plain"),
        ("a.csv", 7, "5", "last"),
        ("b.tsv", 2, "1", "x"),
        ("c.csv", 2, "1", "x"),
        ("d.parquet", 1, "1", "a"),
        ("d.parquet", 3, "3", "b"),
        ("e.parquet", 1, None, "<|im_start|>"),
    ]
    losses = {k.removeprefix("dropped/"): v for k, v in metrics.items() if k.startswith("dropped/")}
    assert losses == {"wrong_columns": 1, "invalid_utf8": 1, "empty_text": 1, "broken_parquet": 1}


def test_texts_and_pages(tmp_path):
    put(tmp_path / "a.txt", "\n\n第一段\n\n第二段\n".encode())
    put(tmp_path / "b.md", b"# Title\n" + b"caf\xff " + b"word " * 200)
    put(tmp_path / "c.txt", b"\xff\xfd\x81 \x00" * 20)
    put(tmp_path / "d.html", '<html><head><meta charset="gbk"></head><p>你好</p></html>'.encode("gbk"))
    put(tmp_path / "e.txt", b"")
    put(tmp_path / "f.txt", b"\n".join([b"line " * 100, b""] * 50))
    metrics, found = run(tmp_path, *sorted(tmp_path.glob("?.*")), max_text_chars=10_000)
    by_path = {}
    for row in found:
        by_path.setdefault(row["path"], []).append(row)
    assert by_path["a.txt"][0]["text"].startswith("第一段") and by_path["a.txt"][0]["line"] == 3
    assert "caf\ufffd" in by_path["b.md"][0]["text"] and metrics["changed/replaced_bytes"] == 1
    assert "<p>你好</p>" in by_path["d.html"][0]["text"]
    assert [r["line"] for r in by_path["f.txt"]] == [1, 41, 81] and max(
        len(r["text"]) for r in by_path["f.txt"]
    ) < 11_000
    assert metrics["dropped/not_utf8"] == 1 and metrics["dropped/empty_file"] == 1


def warc_record(kind, body, content_type, extra=b""):
    head = (
        b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Record-ID: <urn:uuid:%d>\r\nContent-Type: %s\r\n%sContent-Length:"
        b" %d\r\n\r\n"
    )
    return head % (kind, len(body), content_type, extra, len(body)) + body + b"\r\n\r\n"


def test_web_archives(tmp_path):
    http = b"HTTP/1.1 %s\r\nContent-Type: %s\r\n\r\n%s"
    page = warc_record(
        b"response", http % (b"200 OK", b"text/html; charset=gbk", "<p>你好</p>".encode("gbk")), b"application/http"
    )
    gone = warc_record(b"response", http % (b"404 Not Found", b"text/html", b"gone"), b"application/http")
    image = warc_record(b"response", http % (b"200 OK", b"image/png", b"\x89PNG"), b"application/http")
    plain = warc_record(b"conversion", b"extracted text", b"text/plain")
    info = warc_record(b"warcinfo", b"software: x", b"application/warc-fields")
    data = b"".join(gzip.compress(r) for r in (info, page, gone, image, plain, page))
    metrics, found = run(tmp_path, put(tmp_path / "a.warc.gz", data[:-10]), put(tmp_path / "b.warc", info + plain))
    assert [r["text"] for r in found][:2] == ["<p>你好</p>", "extracted text"] and found[0]["origin_id"].startswith(
        "<urn:uuid:"
    )
    assert metrics["dropped/http_error"] == metrics["dropped/not_a_page"] == metrics["dropped/truncated_gzip"] == 1
    assert metrics["docs_in"] == metrics["docs_out"] + 3


def test_losses_are_counted_by_reason_and_sampled_with_their_line(tmp_path):
    data = (
        lines(DOCS[0])
        + b'{broken\n{"text": "\xff"}\n3\n{"title": "x"}\n{"text": 7}\n{"text": ""}\n{"text": "half \\ud83d pair"}\n'
    )
    data += b'{"text": "' + b"x" * (1 << 20) + b'"}\n'
    metrics, found = run(tmp_path, put(tmp_path / "a.jsonl", data), max_record_mb=1)
    losses = {k.removeprefix("dropped/"): v for k, v in metrics.items() if k.startswith("dropped/")}
    assert losses == dict.fromkeys(
        ["broken_json", "invalid_utf8", "not_an_object", "unknown_form", "wrong_type", "empty_text", "too_long"], 1
    )
    assert metrics["docs_in"] == 9 and found[1]["text"] == "half \ufffd pair" and metrics["changed/lone_surrogate"] == 1
    samples = {s["rule"]: s for s in map(json.loads, (tmp_path / "out/samples.jsonl").read_text().splitlines())}
    assert {rule: s["line"] for rule, s in samples.items()} == {
        "broken_json": 2,
        "invalid_utf8": 3,
        "not_an_object": 4,
        "unknown_form": 5,
        "wrong_type": 6,
        "empty_text": 7,
        "lone_surrogate": 8,
        "too_long": 9,
    }
    assert samples["broken_json"]["path"] == "a.jsonl" and samples["broken_json"]["before"] == "{broken"


@pytest.mark.parametrize(
    ("name", "squeeze"),
    [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress), ("a.jsonl.xz", lzma.compress)],
)
@pytest.mark.parametrize("many", [5000, 25_000])
def test_what_is_before_a_truncation_is_kept(tmp_path, name, squeeze, many):
    random.seed(1)
    records = [
        {"text": random.randbytes(40).hex()} for _ in range(many)
    ]  # 25,000 are above the size at which files are cut
    whole = squeeze(lines(*records))
    metrics, found = run(tmp_path, put(tmp_path / name, whole[: len(whole) * 2 // 3]), part_mb=1)
    (reason,) = [k for k in metrics if k.startswith("dropped/")]
    assert reason.startswith("dropped/truncated_") and metrics[reason] == 1 and metrics["docs_in"] == len(found) + 1
    assert [r["text"] for r in found] == [r["text"] for r in records[: len(found)]] and (len(found) > many // 4)
    assert [r["line"] for r in found] == list(range(1, len(found) + 1))


def test_a_line_too_long_to_be_spooled_costs_itself_alone(tmp_path):
    random.seed(3)
    texts = [random.randbytes(1000).hex() for _ in range(1500)]
    data = (
        b"\xef\xbb\xbf"
        + lines(*[{"text": t} for t in texts])
        + b'{"text": "'
        + random.randbytes(3 << 19).hex().encode()
        + b'"}\n'
        + lines(*DOCS)
    )
    metrics, found = run(
        tmp_path, put(tmp_path / "a.jsonl.gz", gzip.compress(data, 1)), max_record_mb=1, part_mb=1, workers=2
    )
    assert [(r["line"], r["text"]) for r in found] == [
        *enumerate(texts, 1),
        *((1502 + i, d["text"]) for i, d in enumerate(DOCS)),
    ]
    assert metrics["dropped/too_long"] == 1 and metrics["docs_in"] == len(found) + 1


def test_too_much_loss_names_the_source_the_reasons_and_the_knob(tmp_path):
    good, bad = put(tmp_path / "good.jsonl", lines(*DOCS)), put(tmp_path / "bad.jsonl", lines(*DOCS) + b"x\n")
    with pytest.raises(
        ValueError, match=r"source bad.jsonl: 1 of 6 .*broken_json 1.*samples.jsonl.*ingest.max_bad_share = 0.1"
    ):
        run(tmp_path, good, bad, max_bad_share=0.1)
    assert (tmp_path / "out/samples.jsonl").read_text()
    assert run(tmp_path, good, bad, max_bad_share=0.2)[0]["docs_out"] == 10
    with pytest.raises(ValueError, match="no document in"):
        run(tmp_path, put(tmp_path / "none.jsonl", b"x\n"), name="none")


def digests(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir()) if p.is_file()}
