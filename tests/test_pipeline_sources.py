"""Names become sources: digests follow content, problems come all at once, held-out questions stay out of all that is
trained on."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.data.chat_records import read_chats
from pipeline.data.preference_records import read_preferences
from pipeline.data.records import Losses
from pipeline.sources import resolve
from pipeline.sources.python_docs import list_python_docs, read_run, runs
from pipeline.sources.state import SourceChanged, unchanged
from pipeline.sources.teaching import (
    facts,
    teaching_chats,
    teaching_heldout,
    teaching_preferences,
    teaching_texts,
)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def test_files_directories_and_globs(tmp_path):
    a = write(tmp_path / "data/a.jsonl", {"text": "x"})
    write(tmp_path / "data/deep/b.jsonl", {"text": "y"})
    (tmp_path / "data/picture.png").write_bytes(b"x")
    (tmp_path / "data/.hidden.jsonl").write_text("{}")
    one, folder, pattern = resolve([str(a), str(tmp_path / "data"), str(tmp_path / "data/**/*.jsonl")], "text")
    assert [f.relpath for f in one.files] == ["a.jsonl"] and one.name == "a.jsonl"
    assert [f.relpath for f in folder.files] == ["a.jsonl", "deep/b.jsonl"] and folder.skipped == (
        ("picture.png", "unknown file type"),
    )
    assert [f.relpath for f in pattern.files] == ["a.jsonl", "deep/b.jsonl"]


def test_digest_follows_content_and_name_not_place(tmp_path):
    first = resolve([str(write(tmp_path / "one/a.jsonl", {"text": "x"}))], "text")[0]
    moved = resolve([str(write(tmp_path / "two/a.jsonl", {"text": "x"}))], "text")[0]
    changed = resolve([str(write(tmp_path / "two/a.jsonl", {"text": "z"}))], "text")[0]
    assert first.digest == moved.digest != changed.digest


def test_digests_are_remembered_and_renewed_though_size_and_time_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.files._RACY_NS", 0)
    path = write(tmp_path / "a.jsonl", {"text": "x"})
    (tmp_path / "home").mkdir()
    digest = resolve([str(path)], "text")[0].digest
    cache = tmp_path / "home/digests.json"
    assert len(json.loads(cache.read_text())) == 1
    before = path.stat()
    write(path, {"text": "y"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    other = resolve([str(path)], "text")[0].digest
    assert other != digest and path.stat().st_size == before.st_size
    cache.write_text("not json")
    assert resolve([str(path)], "text")[0].digest == other


def test_links_are_followed_and_what_is_not_read_is_told_with_the_reason(tmp_path):
    write(tmp_path / "away/b.jsonl", {"text": "y"})
    write(tmp_path / "data/a.jsonl", {"text": "x"})
    (tmp_path / "data/linked").symlink_to(tmp_path / "away")
    (tmp_path / "data/round").symlink_to(tmp_path / "data")
    (tmp_path / "data/gone.jsonl").symlink_to(tmp_path / "nothing")
    (tmp_path / "data/letter.docx").write_bytes(b"x")
    os.mkfifo(tmp_path / "data/pipe.jsonl")
    found = resolve([str(tmp_path / "data")], "text")[0]
    assert [f.relpath for f in found.files] == ["a.jsonl", "linked/b.jsonl"]
    assert [(s.path, s.reason) for s in found.skipped] == [
        ("gone.jsonl", "a link to nothing"),
        ("letter.docx", "unknown file type"),
        ("pipe.jsonl", "not a plain file"),
        ("round", "a link to a folder that is read as data already"),
    ]
    (tmp_path / "link").symlink_to(tmp_path / "away")
    assert [f.relpath for f in resolve([str(tmp_path / "link")], "text")[0].files] == ["b.jsonl"]


def test_a_folder_with_a_slash_is_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "books/a.jsonl", {"text": "x"})
    monkeypatch.chdir(tmp_path)
    plain, slash, dotted = (resolve([name], "text")[0] for name in ("books", "books/", "./books//"))
    assert plain == slash == dotted and plain.name == "books"
    with pytest.raises(ValueError, match="2 times"):
        resolve(["books", "books/"], "text")


@pytest.mark.parametrize("restored", [False, True])
def test_a_file_replaced_while_it_is_read_is_an_error_by_name(tmp_path, restored):
    path = write(tmp_path / "exam.jsonl", {"text": "x"})
    source = resolve([str(path)], "text")[0]
    os.utime(path)
    with unchanged(source.files):
        assert path.read_text(), "another time stamp on the same bytes is no change"
    with pytest.raises(SourceChanged, match=r"exam\.jsonl: was changed"), unchanged(source.files):
        kept = path.rename(tmp_path / "kept")
        write(path, {"text": "y"})
        if restored:
            kept.replace(path)
    if not restored:
        with pytest.raises(SourceChanged, match="run again"), unchanged(source.files):
            raise AssertionError("other bytes are refused before they are read")


def test_same_names_are_told_apart(tmp_path):
    sources = resolve([str(write(tmp_path / d / "train.jsonl", {"text": d})) for d in ("wiki", "news")], "text")
    assert [s.name for s in sources] == ["wiki/train.jsonl", "news/train.jsonl"]


def test_all_problems_at_once(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("x")
    (tmp_path / "a.docx").write_bytes(b"x")
    names = [
        "teachin",
        str(tmp_path / "none*.jsonl"),
        str(text),
        str(tmp_path / "a.docx"),
        "python-docs",
        "hf://x",
        "teaching",
        "teaching",
    ]
    with pytest.raises(ValueError) as error:
        resolve(names, "chat")
    lines = str(error.value).splitlines()
    assert len(lines) == 7
    parts = (
        "did you mean teaching",
        "matches no file",
        "plain text",
        "unknown file type",
        "no chat data",
        "hf://owner",
        "2 times",
    )
    for line, part in zip(lines, parts, strict=True):
        assert part in line
    with pytest.raises(ValueError, match="no sources"):
        resolve([], "text")


def test_an_unreachable_store_is_a_problem_not_a_crash(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(ValueError, match=r"cannot be listed.*AWS_ENDPOINT_URL"):
        resolve(["s3://bucket/x"], "text")


def test_python_docs_are_real_capped_and_not_imported():
    digest = list_python_docs()[0].sha256
    assert digest == list_python_docs()[0].sha256
    jobs = runs(400_000)
    documents = [d for job in jobs for d in read_run(job)]
    assert 250_000 < sum(len(d["text"]) for d in documents) <= 400_000
    assert documents == [d for job in runs(400_000) for d in read_run(job)]
    assert any(d["id"].startswith("topic ") for d in documents)
    code = (
        "import sys; from pipeline.sources.python_docs import *; list(read_run(runs(400000)[0])); print('pydoc_data' in"
        " sys.modules, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "False",
        "False",
    ]


def test_held_out_questions_are_in_nothing_that_is_trained_on():
    trained = "\n".join(
        [t["text"] for t in teaching_texts()]
        + [m["content"] for c in teaching_chats() for m in c["messages"]]
        + [p["prompt"][0]["content"] + p["chosen"] + p["rejected"] for p in teaching_preferences()]
        + [" ".join(fact[lang]["choices"]) for fact in facts() for lang in ("zh", "en")]
    )
    heldout = teaching_heldout()
    assert heldout and not [h["question"] for h in heldout if h["question"] in trained]


def test_the_teaching_set_is_what_it_claims():
    for lang in ("zh", "en"):
        assert sum(c["lang"] == lang for c in teaching_chats()) >= 300
    assert len(teaching_preferences()) >= 150
    assert len({f["id"] for f in facts()}) == len(facts())
    for lang in ("zh", "en"):
        answers = [f[lang]["answer"] for f in facts()]
        assert len(set(answers)) == len(answers)
    for fact in facts():
        for lang in ("zh", "en"):
            block = fact[lang]
            assert judged_right(block["answer"], block["keywords"]) and not judged_right(
                block["rejected"], block["keywords"]
            )
            assert len(block["choices"]) == len(set(block["choices"])) == 4 and 0 <= block["correct"] < 4


def judged_right(answer, keywords):
    return all(any(word.lower() in answer.lower() for word in group) for group in keywords)


def test_records_from_files_and_from_the_teaching_set(tmp_path):
    more = [{"question": "q", "answer": "a", "id": i} for i in range(20)]
    path = write(tmp_path / "sft.jsonl", {"prompt": "q", "completion": "a"}, {"prompt": "no answer"}, *more)
    losses = Losses()
    chats = list(read_chats(resolve([str(path), "teaching"], "chat"), losses=losses))
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert chats[0] == {"messages": turns, "source": "sft.jsonl", "path": "sft.jsonl", "line": 1, "id": None}
    assert chats[1]["id"] == "0" and len(chats) == 21 + len(teaching_chats())
    assert losses.dropped == {"unknown_form": 1} and losses.samples[0]["line"] == 2 and losses.seen == len(chats) + 1
    pairs = tmp_path / "dpo.json"
    pairs.write_text(json.dumps([{"prompt": "q", "chosen": "c", "rejected": "r"}] * 3, indent=1))
    assert [p["line"] for p in read_preferences(resolve([str(pairs)], "preference"))] == [1, 2, 3]


def test_too_many_unusable_records_are_an_error_with_an_example(tmp_path):
    path = write(tmp_path / "sft.jsonl", {"prompt": "q", "completion": "a"}, {"text": "no chat"})
    with pytest.raises(ValueError, match=r"1 of 2 records.*unknown_form 1.*sft.jsonl line 2.*max_bad_records"):
        list(read_chats(resolve([str(path)], "chat")))
    assert len(list(read_chats(resolve([str(path)], "chat"), max_bad_share=0.5))) == 1
