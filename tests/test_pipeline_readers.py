"""Files of other encodings and tables with padding: read as what they are, and said so; nothing is recoded by guess."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.data import IngestSection
from pipeline.data.chat_records import read_chats
from pipeline.data.ingest import ingest
from pipeline.data.jsonl import read_jsonl
from pipeline.data.records import Losses
from pipeline.readers import Fault, read
from pipeline.readers.encodings import utf8
from pipeline.sources import resolve

LINES = [{"prompt": f"第{i}个码头在哪里？", "completion": f"码头{i}在港口的北边，灯塔的旁边。"} for i in range(40)]


def jsonl(records, encoding):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode(encoding)


def piece(path, **more):
    limits = {"max_record": 1 << 20, "max_text": 1 << 20}
    return {"format": "jsonl", "location": str(path), "relpath": path.name, **limits, **more}


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_file_in_another_encoding_is_read_and_named(tmp_path, encoding, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        rows = "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in LINES)
        path.write_bytes(rows.encode(encoding))
    else:
        path.write_bytes(jsonl(LINES, encoding))
    losses = Losses()
    chats = list(read_chats(resolve([str(path)], "chat"), losses=losses))
    assert [c["messages"][0]["content"] for c in chats] == [r["prompt"] for r in LINES]
    rule = {"gbk": "recoded_gb18030", "gb18030": "recoded_gb18030", "utf-16": "recoded_utf16"}.get(encoding)
    assert dict(losses.changed) == ({rule: 1} if rule else {})
    assert [s["path"] for s in losses.samples] == ([path.name] if rule else [])


def test_a_file_of_two_encodings_is_not_recoded(tmp_path):
    path = tmp_path / "mixed.jsonl"
    for first, second in (("utf-8", "gb18030"), ("gb18030", "utf-8")):
        path.write_bytes(jsonl(LINES[:3], first) + jsonl(LINES[3:5], second))
        asked = piece(path)
        found = [record for _, record in read(asked)]
        assert "recoded" not in asked
        assert [r["prompt"] for r in found if isinstance(r, dict)] == [
            r["prompt"] for r in (LINES[:3] if first == "utf-8" else LINES[3:5])
        ]
        assert {r.reason for r in found if isinstance(r, Fault)} == {"invalid_utf8"}


SAID = {
    "Chinese": "语言模型是怎样炼成的？它先读很多文本，然后学会预测下一个词元。",
    "traditional Chinese": "語言模型是怎樣煉成的？它先讀很多文本，然後學會預測下一個詞元。",
    "Korean": "언어 모델은 많은 글을 읽고 다음에 올 낱말을 예측하는 법을 배웁니다.",
    "Japanese": "言語モデルは大量の文章を読んで、次に来る単語を予測することを学びます。",
    "Japanese names": "東京大学大学院工学系研究科電気系工学専攻",
    "English": "It’s a “quoted” text — nothing more.",
    "German": "Das Mädchen, müde vom Größenwahn, aß süße Äpfel.",
    "French": "L'été dernier, le garçon a mangé une crêpe près de la forêt.",
    "Polish": "Zażółć gęślą jaźń, proszę; Łódź jest piękna.",
    "Czech": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Turkish": "Şişli'de çok güzel bir gün, öğretmen ağladı.",
    "Russian": "Съешь же ещё этих мягких французских булок.",
}


@pytest.mark.parametrize(
    ("language", "encoding", "name"),
    [
        ("Chinese", "gbk", "gb18030"),
        ("traditional Chinese", "gbk", "gb18030"),
        ("traditional Chinese", "big5", "big5"),
        ("Korean", "euc_kr", "euc-kr"),
        ("Japanese", "euc_jp", "euc-jp"),
        ("Japanese", "cp932", "shift-jis"),
        ("Japanese names", "euc_jp", None),
        ("English", "cp1252", "windows-1252"),
        ("German", "latin-1", "windows-1252"),
        ("French", "cp1252", "windows-1252"),
        ("Polish", "cp1250", None),
        ("Czech", "iso8859-2", None),
        ("Turkish", "cp1254", None),
        ("Russian", "cp1251", None),
        ("Russian", "koi8-r", None),
        ("English", "utf-16-le", "utf-16"),
        ("Chinese", "utf-16-le", "utf-16"),
        ("Korean", "utf-16-be", "utf-16"),
        ("Russian", "utf-16-le", "utf-16"),
    ],
)
@pytest.mark.parametrize("lines", [1, 60])
def test_a_file_is_read_in_the_encoding_that_makes_sense_of_it_or_refused(tmp_path, language, encoding, name, lines):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"text": SAID[language]}] * lines, encoding))
    given = piece(path)
    found = [record for _, record in read(given)]
    if name is None:
        assert {record.reason for record in found} == {"invalid_utf8"} and "recoded" not in given
    else:
        assert found == [{"text": SAID[language]}] * lines and given["recoded"] == name


@pytest.mark.parametrize("raw", ["你".encode("gbk"), b"abc\0def\n" * 9, b"a" * 999 + b"\xff\n", bytes(range(256)) * 9])
def test_what_no_encoding_makes_sense_of_is_not_recoded(tmp_path, raw):
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    given = piece(path) | {"format": "text"}
    assert list(read(given)) and "recoded" not in given


def test_characters_cut_by_chunks_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.readers.streams.CHUNK", 7)
    for encoding in ("utf-8", "gb18030"):
        path = tmp_path / f"{encoding}.jsonl"
        path.write_bytes(jsonl(LINES[:5], encoding))
        assert b"".join(utf8(piece(path))) == jsonl(LINES[:5], "utf-8")


@pytest.mark.parametrize("packed", [False, True])
def test_every_piece_of_a_large_file_is_recoded_alike(tmp_path, packed):
    hanzi = [bytes([high, low]).decode("gb18030") for high in range(0xB0, 0xD7) for low in range(0xA1, 0xFE)]
    draw = random.Random(0)
    records = [
        {"text": f"第{i}盏灯，" + "".join(draw.choices([*hanzi, *"的一是不了" * 99], k=900))} for i in range(1500)
    ]
    raw = jsonl(records, "gb18030")
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    ingest(IngestSection(), resolve([str(path)], "text"), tmp_path / "out", workers=1)
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    texts = [text for part in parts for text in pq.read_table(part)["text"].to_pylist()]
    assert texts == [r["text"] for r in records] and len(parts) > 1
    samples = [s for s in read_jsonl(tmp_path / "out" / "samples.jsonl") if s["rule"] == "recoded_gb18030"]
    assert samples and {s["path"] for s in samples} == {path.name}


def test_fields_that_a_table_pads_with_null_are_no_fields(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    tools = [{"name": "f", "parameters": {"x": {"type": "int"}, "y": None}}, {"name": "g", "parameters": {"x": None}}]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages, "tools": tools}]), tmp_path / "a.parquet")
    [chat] = read_chats(resolve([str(tmp_path / "a.parquet")], "chat"))
    assert '"arguments": {"x": 1}}' in chat["messages"][2]["content"]
    assert "null" not in json.dumps(chat["messages"])


def test_a_table_of_chats_shows_every_column_and_one_of_texts_only_its_text(tmp_path):
    chats = {"instruction": ["q"], "output": ["a"], "passage": ["A boat lies here."]}
    pq.write_table(pa.table(chats), tmp_path / "chats.parquet")
    with pytest.raises(ValueError, match="unused_field 1"):
        ingest(IngestSection(), resolve([str(tmp_path / "chats.parquet")], "text"), tmp_path / "out")
    ingest(
        IngestSection(ignore_fields=("passage",)), resolve([str(tmp_path / "chats.parquet")], "text"), tmp_path / "b"
    )
    pq.write_table(pa.table({"text": ["A text."], "passage": ["A boat lies here."]}), tmp_path / "texts.parquet")
    asked = piece(tmp_path / "texts.parquet", format="parquet", columns=["text"], unless={"instruction"})
    assert list(read(asked)) == [(1, {"text": "A text."})]


def test_text_is_learnt_from_end_to_end_so_an_answer_not_to_learn_is_refused(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad", "weight": 0},
             {"role": "user", "content": "r"}, {"role": "assistant", "content": "good"}]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"messages": turns}], "utf-8"))
    with pytest.raises(ValueError, match="turn_weight 1"):
        ingest(IngestSection(), resolve([str(tmp_path / "a.jsonl")], "text"), tmp_path / "out")
