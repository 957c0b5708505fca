import gzip
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.evaluation import EvaluateSection
from pipeline.config.tree import ConfigError, load
from pipeline.evaluation.exams import complaints, exam_items, read_exams
from pipeline.evaluation.selection import sample, taken, write_exams
from pipeline.running.peek import peek
from pipeline.sources import resolve
from tasks.running.sources import given

FACT = {
    "questions": ["什么是词元？", "词元指什么？", "解释词元。", "词元有什么用？"],
    "heldout": ["一句话说明词元。", "谈谈词元。"],
    "answer": "词元是文本的最小单位。",
    "keywords": [["最小"], ["单位"]],
    "rejected": "词元是一种优化器。",
    "reason": "wrong_fact：不是优化器",
    "choices": ["优化器", "文本的最小单位", "层", "损失"],
    "correct": 1,
}


def source(path, *rows, name="mine"):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    )
    return SimpleNamespace(name=name, files=[SimpleNamespace(relpath=path.name, location=str(path))])


def test_a_fact_gives_questions_choices_and_a_preference(tmp_path):
    exams = read_exams([source(tmp_path / "f.jsonl", {"id": "tok-1", "topic": "t", "zh": FACT, "en": FACT})])
    items = exams.items
    assert not exams.skipped
    assert [a["set"] for a in items["answers"]] == (["training"] * 4 + ["heldout"] * 2) * 2
    assert items["choices"][0]["correct"] == 1
    assert (items["preferences"][0]["prompt"], items["preferences"][0]["reason"]) == ("一句话说明词元。", "wrong_fact")
    assert len({item["id"] for kind in items.values() for item in kind}) == 16


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["a", "b", "c"], "correct": 2},
        {"question": "q", "choices": ["a", "b", "c"], "answer": "C"},
        {"question": "q", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"},
        {"prompt": "q", "choices": ["a", "b", "right"], "answer": "right"},
    ],
)
def test_the_right_choice_may_be_named_in_many_ways(row, tmp_path):
    items = read_exams([source(tmp_path / "f.jsonl", row)]).items
    assert items["choices"][0]["correct"] == 2
    assert items["choices"][0]["set"] == "mine"


def test_users_questions_and_preferences_are_read(tmp_path):
    rows = [
        {"prompt": "问", "completion": "答案"},
        {"question": "q", "keywords": ["a", ["b", "c"]]},
        {"prompt": "p", "chosen": "a", "rejected": "b", "lang": "fr"},
    ]
    items = read_exams([source(tmp_path / "f.jsonl", *rows)]).items
    assert [(a["lang"], a["keywords"], a["answer"]) for a in items["answers"]] == [
        ("zh", [], "答案"),
        ("en", [["a"], ["b", "c"]], ""),
    ]
    assert items["preferences"][0]["lang"] == "fr"


def test_a_pair_may_be_a_conversation_in_any_form_of_the_training_data(tmp_path):
    ask, told = {"role": "user", "content": "When is high tide?"}, {"role": "assistant", "content": "At noon."}
    before = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    wrong = {"role": "assistant", "content": "Never."}
    rows = [
        {"chosen": [ask, told], "rejected": [ask, wrong], "lang": "en"},
        {"conversations": [*before, ask], "chosen": told, "rejected": wrong},
        {"chosen": [ask], "rejected": [ask]},
    ]
    exams = read_exams([source(tmp_path / "f.jsonl", *rows)])
    one, two = exams.items["preferences"]
    assert (one["prompt"], one["chosen"], one["rejected"]) == ("When is high tide?", "At noon.", "Never.")
    assert "messages" not in one and [m["content"] for m in two["messages"]] == ["Hello.", "Hello.", ask["content"]]
    assert two["prompt"] == ask["content"] and exams.bad["mine"] == 1


def test_what_is_no_item_is_skipped_with_its_line(tmp_path):
    bad = [
        "{broken",
        "[1]",
        {"question": "q"},
        {"question": "", "answer": "a"},
        {"question": "q", "choices": ["a"], "correct": 0},
        {"question": "q", "choices": ["a", "b"], "correct": 7},
        {"question": "q", "keywords": [[]]},
        {"prompt": "p", "chosen": "a", "rejected": 3},
        {"zh": {"questions": 3}},
        {"question": "q", "choices": ["a", "b"], "answer": None},
        "[" * 100_000,
    ]
    mine = source(tmp_path / "f.jsonl", *bad, {"question": "q", "answer": "fine"})
    counts = write_exams(EvaluateSection(max_bad_records=1), [mine], tmp_path / "out")
    assert counts == {"choices": 0, "answers": 1, "preferences": 0, "skipped": len(bad), "left": 0}
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, len(bad) + 1))
    assert all(line["why"] and line["path"] == "f.jsonl" for line in lines)
    with pytest.raises(ValueError, match=r"11 of 12 records.*f\.jsonl line 1.*max_bad_records"):
        write_exams(EvaluateSection(), [mine], tmp_path / "out")
    with pytest.raises(ValueError, match=r"none of 11 records.*f\.jsonl line 1"):
        write_exams(EvaluateSection(max_bad_records=1), [source(tmp_path / "f.jsonl", *bad)], tmp_path / "out")


def test_a_sample_keeps_order_and_does_not_change():
    items = [{"id": f"i{i}", "set": "long"} for i in range(50)]
    one = sample(items, 10, 0)
    assert one == sample(list(items), 10, 0)
    assert len(one) == 10
    assert one == [item for item in items if item in one]
    assert one != sample(items, 10, 1)
    assert set(map(str, sample(items, 5, 0))) < set(map(str, one))
    assert sample(items, 0, 0) == []
    short = [{"id": f"s{i}", "set": "short"} for i in range(3)]
    both = sample([*items, *short], 10, 0)
    assert both[-3:] == short and both[:-3] == sample(items, 7, 0)
    assert len(sample([*items, *short], 3, 0)) == 3


def test_the_teaching_set_is_complete_and_asks_decontaminate_only_what_was_not_taught():
    sources = resolve(["teaching"], "exam")
    exams = read_exams(sources)
    items = exams.items
    assert not exams.skipped
    assert len(items["choices"]) >= 100
    held = exam_items(sources)
    taught = {item["question"] for item in items["answers"] if item["set"] == "training"}
    assert held
    assert not taught & {item["text"] for item in held}


ROWS = [
    {"question": f"Which lamp hangs over pier {i}?", "choices": ["red", "blue"], "correct": i % 2} for i in range(4)
]


def test_an_exam_comes_in_any_file_form_that_data_come_in(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "c.ndjson").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    pq.write_table(
        pa.Table.from_pylist([{"answer": None, **row} for row in ROWS] + [{"question": "q", "answer": "padded"}]),
        tmp_path / "d.parquet",
    )
    head = "id\tquestion\tA\tB\tC\tanswer\n"
    (tmp_path / "e.tsv").write_text(
        head + "".join(f"0\t{r['question']}\tred\tblue\t\t{'AB'[r['correct']]}\n" for r in ROWS)
    )
    for name in ("a.jsonl.gz", "b.json", "c.ndjson", "d.parquet", "e.tsv"):
        exams = read_exams(resolve([str(tmp_path / name)], "exam"))
        assert [item["correct"] for item in exams.items["choices"]] == [0, 1, 0, 1], name
        assert all(item["choices"] == ["red", "blue"] for item in exams.items["choices"])
        assert len({item["id"] for item in exams.items["choices"]}) == 4
        assert not exams.skipped


def test_examples_beside_what_is_asked_are_not_asked(tmp_path):
    head = "id,question,A,B,C,D,answer\n"
    for split in ("dev", "val"):
        (tmp_path / "mine" / split).mkdir(parents=True)
        (tmp_path / "mine" / split / f"law_{split}.csv").write_text(head + f"0,the {split} one?,a,b,c,d,C\n")
    exams = read_exams(resolve([str(tmp_path / "mine")], "exam"))
    assert [item["question"] for item in exams.items["choices"]] == ["the val one?"]
    assert exams.left == ["mine/dev/law_dev.csv"]
    names = ("arc-test-00000-of-00001", "arc-train-00000-of-00001", "train_2500", "trains")
    for name in names:
        (tmp_path / "hub").mkdir(exist_ok=True)
        (tmp_path / "hub" / f"{name}.jsonl").write_text(json.dumps({"question": name, "answer": "why"}) + "\n")
    hub = read_exams(resolve([str(tmp_path / "hub")], "exam"))
    assert [item["question"] for item in hub.items["answers"]] == [names[0], "trains"]
    alone = read_exams(resolve([str(tmp_path / "mine" / "dev")], "exam"))
    assert [item["question"] for item in alone.items["choices"]] == ["the dev one?"]


def test_a_file_that_counts_otherwise_than_its_form_is_refused_whole(tmp_path):
    rows = [{"question": "q", "choices": ["a", "b", "c"], "answer": i % 3 + 1} for i in range(90)]
    exams = read_exams([source(tmp_path / "f.jsonl", *[row for row in rows if row["answer"] < 3], rows[2])])
    assert "does the file count from 1" in complaints(exams, ["mine"], 1.0)[0]
    assert complaints(read_exams([source(tmp_path / "f.jsonl", *[r | {"answer": 0} for r in rows])]), ["mine"], 0) == []


def wrong_files(path):
    """A file of each kind."""
    rows = {
        "exam": {"question": "q", "choices": ["a", "b"], "answer": "A"},
        "sft": {"instruction": "do", "input": "", "output": "done"},
        "chat": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "dpo": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "pairs": {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
                  "rejected": {"from": "gpt", "value": "b"}},
        "text": {"text": "a document"},
        "qa": {"question": "q", "answer": "a"},
    }  # fmt: skip
    for name, row in rows.items():
        (path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("exam", ["exam", "qa", "dpo", "pairs"], {"sft": "sft.sources", "chat": "sft.sources"}),
        ("exam", ["qa"], {"text": "no question"}),
        ("chat", ["sft", "chat", "qa"], {"dpo": "dpo.sources", "pairs": "dpo.sources", "text": "ingest.sources"}),
        ("chat", ["qa"], {"exam": "evaluate.sources"}),
        ("preference", ["dpo", "pairs"], {"sft": "sft.sources", "chat": "sft.sources", "exam": "evaluate.sources"}),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_seen_before_anything_runs(kind, right, wrong, tmp_path):
    wrong_files(tmp_path)
    for name in right:
        assert peek(resolve([str(tmp_path / f"{name}.jsonl")], kind), kind, 0.1) == [], name
    for name, knob in wrong.items():
        (line,) = peek(resolve([str(tmp_path / f"{name}.jsonl")], kind), kind, 0.1)
        assert knob in line and f"{name}.jsonl" in line


def test_all_wrong_files_are_told_at_once_with_their_knobs(tmp_path):
    wrong_files(tmp_path)
    (tmp_path / "broken.jsonl").write_text("{broken\n")
    sources = {"sft": "dpo", "dpo": "sft", "evaluate": "sft"}
    overrides = [f"{section}.sources={tmp_path}/{name}.jsonl" for section, name in sources.items()]
    with pytest.raises(ConfigError) as error:
        given(load("tiny", overrides))
    assert [line.split()[0] for line in error.value.problems] == ["sft.sources", "dpo.sources", "evaluate.sources"]
    assert "line 1: broken_json" in peek(resolve([str(tmp_path / "broken.jsonl")], "chat"), "chat", 0.1)[0]


def test_what_exams_took_from_the_training_data_is_counted(tmp_path):
    (tmp_path / "stats.json").write_text(json.dumps({"docs_in": 800, "dropped": {"contaminated": 216, "empty": 1}}))
    items = [
        {"id": "1", "set": "mine", "documents": 200, "left": 0},
        {"id": "2", "set": "other", "documents": 20, "left": 4},
        {"id": "3", "set": "taught", "documents": 9, "left": 9},
    ]
    (tmp_path / "contamination.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    assert taken({"chats": tmp_path}) == {"chats": {"taken": 216, "of": 800, "sets": {"mine": 200, "other": 16}}}
