"""Recognising the standard exams, their examples, and what is told or refused about them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from token_helpers import new_model, tokenizer_dir

from model.generation.compare import paired
from model.generation.fluency import look, loops, seen
from model.generation.forest import groves, plant, shared
from model.generation.measures import flexible, measured, pooled, standard_error, strict, table
from model.generation.scorer import Scorer
from model.network.weights import save_model
from pipeline.evaluation.exams import exam_items
from pipeline.evaluation.gold import NotAnItem
from pipeline.evaluation.standard.forms import layout, split_of
from pipeline.evaluation.standard.named import recognised, told
from pipeline.evaluation.standard.prompts import read_standard
from pipeline.pages.report.scores import comparison
from pipeline.pages.report.tax import tax_rows

STEM = {
    "question": {"stem": "q", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
    "answerKey": "B",
}
PIQA = {"goal": "g", "sol1": "a", "sol2": "b"}


def jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def csv(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def forms(*names):
    known, others, wrong = recognised(list(names))
    assert not wrong, wrong
    return [source.form for source in known] + [f"own {source.name}" for source in others]


def test_a_form_is_recognised_by_its_fields(tmp_path):
    names = [
        csv(tmp_path / "a.csv", "id,question,A,B,C,D,answer\n0,q,1,2,3,4,A\n"),
        csv(tmp_path / "b.csv", ",Question,A,B,C,D,Answer\n0,q,1,2,3,4,A\n"),
        csv(tmp_path / "c.csv", '"What, then?",1,2,3,4,D\n'),
        jsonl(tmp_path / "d.jsonl", {"id": "Mercury_1", **STEM}),
        jsonl(tmp_path / "e.jsonl", {"id": "7-980", **STEM}),
        jsonl(tmp_path / "f.jsonl", {"question": "q", "answer": "so\n#### 1,000"}),
        jsonl(tmp_path / "g.jsonl", {"question": "q", "choices": ["a", "b"], "correct": 1}),
        jsonl(tmp_path / "h.jsonl", {"question": "q", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 3}),
    ]
    assert forms(*names) == ["ceval", "cmmlu", "mmlu", "arc", "openbookqa", "gsm8k", "mmlu", "own g.jsonl"]


def test_what_cannot_be_told_apart_is_refused_and_may_be_said(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", {"id": "12", **STEM})
    assert "write arc:PATH or openbookqa:PATH" in recognised([path])[2][0]
    assert forms(f"openbookqa:{path}") == ["openbookqa"]
    jsonl(tmp_path / "mixed" / "a.jsonl", {"question": "q", "answer": "#### 1"})
    jsonl(tmp_path / "mixed" / "b.jsonl", {"sentence_good": "a", "sentence_bad": "b"})
    assert "GSM8K" in (line := recognised([str(tmp_path / "mixed")])[2][0]) and "BLiMP" in line


def test_a_name_is_a_folder_kept_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    jsonl(tmp_path / "exams" / "pairs" / "p.jsonl", {"sentence_good": "a", "sentence_bad": "b"})
    assert forms("pairs") == ["blimp"]
    assert "no such file" in recognised(["nothing"])[2][0]


def test_labels_beside_the_records_are_read_and_counted(tmp_path):
    jsonl(tmp_path / "piqa" / "valid.jsonl", PIQA, PIQA)
    assert "valid-labels.lst" in recognised([str(tmp_path / "piqa")])[2][0]
    (tmp_path / "piqa" / "valid-labels.lst").write_text("1\n0\n")
    for name in (tmp_path / "piqa", tmp_path / "piqa" / "valid.jsonl"):
        (source,), _, wrong = recognised([str(name)])
        items = read_standard(source, "piqa", None)["items"]
        assert not wrong and [item["correct"] for item in items] == [1, 0]
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n0\n")
    assert recognised([str(tmp_path / "piqa")])[0][0].digest != source.digest


def test_examples_come_from_the_files_beside_and_too_few_are_refused(tmp_path):
    sums = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(4)]
    test, train = jsonl(tmp_path / "g_test.jsonl", sums[3]), jsonl(tmp_path / "g_train.jsonl", *sums[:3])
    (source,), _, wrong = recognised([test, train], 2)
    (item,) = read_standard(source, "gsm8k", 2)["items"]
    assert not wrong and item["context"].count("\n\n") == 2 and item["context"].endswith("Question: q3\nAnswer:")
    assert "3 examples in its train file, and evaluate.shots = 4" in recognised([test, train], 4)[2][0]
    (alone,), _, _ = recognised([test])
    assert "others report it after 5" in told(alone, -1)
    assert read_standard(alone, "gsm8k", None)["items"][0]["shots"] == 0


def test_splits_and_subjects_are_read_off_paths():
    paths = {
        "dev/law_dev.csv": ("dev", "law"), "test/law.csv": ("test", "law"), "ARC-Easy-Test.jsonl": ("test", "ARC-Easy"),
        "gsm8k_test_300.jsonl": ("test", "gsm8k"), "arc-train-00000-of-00001.parquet": ("train", "arc"),
        "valid-labels.lst": ("val", ""), "machine_learning.csv": (None, "machine_learning"),
    }  # fmt: skip
    assert {path: split_of(path) for path in paths} == paths


def parquet(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def layouts(root):
    """Exams as their authors and the Hub lay them out: (folder, form, subjects, questions)."""
    answered, bare = "id,question,A,B,C,D,answer", "id,question,A,B,C,D"
    for split, head, end in (
        ("dev", f"{answered},explanation", ",A,x\r\n"),
        ("val", answered, ",A\r\n"),
        ("test", bare, "\r\n"),
    ):
        csv(
            root / "ceval" / split / f"law_{split}.csv",
            f"\ufeff{head}\r\n" + "".join(f'{i},"q\n{i}",1,2,3,4{end}' for i in range(5)),
        )
    lettered = {"question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "explanation": ""}
    for split, answer in (("dev", "A"), ("val", "B"), ("test", "")):
        for subject in ("law", "art_studies"):
            parquet(
                root / "hub" / subject / f"{split}-00000-of-00001.parquet",
                *[{"id": i, **lettered, "answer": answer} for i in range(5)],
            )
    rows = [
        {"question": "q", "subject": s, "choices": list("abcd"), "answer": 3}
        for s in ("law", "anatomy")
        for _ in range(5)
    ]
    for split in ("dev", "test", "validation"):
        parquet(root / "mmlu" / "all" / f"{split}-00000-of-00001.parquet", *rows)
    for name in ("ARC-Easy", "ARC-Challenge"):
        for split in ("Train", "Dev", "Test"):
            jsonl(root / "arc" / name / f"{name}-{split}.jsonl", *[{"id": "Mercury_1", **STEM}] * 6)
            csv(root / "arc" / name / f"{name}-{split}.csv", "questionID,AnswerKey,question\nx,A,q (A) b\n")
    csv(root / "arc" / "README.txt", "x")
    for split in ("train", "dev"):
        jsonl(root / "piqa" / f"{split}.jsonl", *[{**PIQA, "goal": f"g{i}"} for i in range(6)])
        csv(root / "piqa" / f"{split}-labels.lst", "1\n" * 6)
    parquet(root / "blimp" / "wh_island" / "train-00000-of-00001.parquet", {"sentence_good": "a", "sentence_bad": "b"})
    return [
        ("ceval", "ceval", ["law"], 5), ("hub", "ceval", ["art_studies", "law"], 10),
        ("mmlu", "mmlu", ["anatomy", "law"], 10), ("arc", "arc", ["ARC-Challenge", "ARC-Easy"], 12),
        ("piqa", "piqa", [""], 6), ("blimp", "blimp", ["wh_island"], 1),
    ]  # fmt: skip


def test_exams_are_read_as_their_authors_and_the_hub_lay_them_out(tmp_path):
    for folder, form, subjects, questions in layouts(tmp_path):
        (source,), others, wrong = recognised([str(tmp_path / folder)], 5)
        items = read_standard(source, form, 5)["items"]
        assert not others and not wrong and source.form == form
        assert sorted({item["subject"] for item in items}) == subjects and len(items) == questions
        assert all(item["shots"] == 5 for item in items) or form == "blimp"
    assert "without answers" in recognised([str(tmp_path / "ceval" / "test")])[2][0]


def test_a_record_that_is_none_is_counted_with_its_line(tmp_path):
    rows = "id,question,A,B,C,D,answer\n0,q,1,2,3,4,A\n1,q,1,2,3,4,E\n2,q,1,2\n3,,1,2,3,4,B\n"
    (source,), _, _ = recognised([csv(tmp_path / "mine" / "val" / "law_val.csv", rows)])
    exam = read_standard(source, "ceval", None)
    assert len(exam["items"]) == 1 and [row["line"] for row in exam["unread"]] == [3, 4, 5]
    assert "answer must be A, B, C or D" in exam["unread"][0]["why"] and "3 records left out" in exam["told"]
    empty = csv(tmp_path / "none" / "test" / "law_test.csv", "id,question,A,B,C,D,answer\n0,q,1,2,3,4,\n")
    assert "its val file is what is asked" in recognised([empty])[2][0]
    with pytest.raises(NotAnItem):
        read_standard(source, "ceval", 3)


def test_questions_are_guarded_under_the_ids_of_their_items(tmp_path):
    jsonl(tmp_path / "pairs" / "p.jsonl", {"sentence_good": "Good one.", "sentence_bad": "Bad one."})
    sources, _, _ = recognised([str(tmp_path / "pairs")])
    (item,) = read_standard(sources[0], "blimp", None)["items"]
    assert exam_items(sources) == [{"id": item["id"], "set": item["set"], "text": "Good one."}]
    assert layout(sources[0], "blimp").subjects["p"].asked


def said(*values):
    return [{"log_likelihood": list(own), "answer": None, "why": ""} for own in values]


def test_measures_are_those_of_the_harness_but_for_ties_of_pairs():
    item = {"form": "arc", "choices": ["aa", "bbbb"], "correct": 1, "subject": "", "group": "", "shots": 0}
    row = table([item, item], said([-2.0, -3.0], [-3.0, -2.0]))
    assert row["measures"]["acc"]["value"] == 0.5 and row["measures"]["acc_norm"]["value"] == 1.0
    pair = {**item, "form": "blimp", "choices": ["a", "b"], "correct": 0}
    assert table([pair], said([-1.0, -1.0]))["measures"]["acc"]["value"] == 0.5
    assert table([{**item, "correct": 0}], said([-1.0, -1.0]))["measures"]["acc"]["value"] == 1.0
    assert (strict("x #### 1,234. y"), flexible("$5 and 1,234.50 left"), strict("7")) == (
        "1,234.",
        "1,234.50",
        "[invalid]",
    )
    errors = [standard_error([0, 1, 1]), standard_error([0, 0, 1, 1])]
    assert pooled(errors, [3, 4]) == pytest.approx(measured([[0, 1, 1], [0, 0, 1, 1]])["stderr"])
    two = [{**item, "subject": name, "group": name} for name in ("x", "x", "y")]
    scores = table(two, said([-1, -9], [-9, -1], [-9, -1]))
    assert scores["macro"]["acc"] == 0.75 and scores["measures"]["acc"]["value"] == pytest.approx(2 / 3)
    assert scores["groups"]["x"]["n"] == 2


def test_trees_on_their_trunks_hold_every_sequence_once():
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 9, 520).tolist()
    sequences = [(shots + rng.integers(0, 9, 1 + i % 5).tolist() + [i % 3, 7], 521) for i in range(30)]
    sequences += [(rng.integers(10 * i, 10 * i + 9, 90).tolist(), 1 + i) for i in range(2, 6)]  # nothing in common
    woods = groves(sequences)
    assert sorted(len(grove.trunk) for grove in woods) == [0, 520] and shared(sequences) > 0.8
    assert sorted(i for grove in woods for i in grove.members) == list(range(34))
    for grove in woods:
        for tree in plant(sequences, grove, 96):
            mask = tree.mask(len(tree.tokens))
            for i, nodes in tree.ends.items():
                path = np.flatnonzero(mask[nodes[-1]])
                assert grove.trunk + [tree.tokens[node] for node in path] == sequences[i][0][:-1]
                assert [tree.depths[node] for node in path] == list(range(len(grove.trunk), len(sequences[i][0]) - 1))


def test_likelihoods_from_trees_are_those_of_each_sequence_alone(tmp_path):
    save_model(new_model(max_seq_len=256), tmp_path, tokenizer_dir())
    scorer, rng = Scorer(str(tmp_path), "cpu", "fp32", 8, lambda n: None), np.random.default_rng(1)
    shots, question = rng.integers(3, 400, 100).tolist(), rng.integers(3, 400, 70).tolist()
    few = [(shots + own + [c], 100 + len(own)) for own in rng.integers(3, 400, (60, 10)).tolist() for c in (3, 4)]
    long = [([9, *question, *rng.integers(3, 400, n).tolist()], 71) for n in (3, 9, 1)]  # choices of several tokens
    early = [([*shots[:90], 2, 3], 1)]  # wants tokens that the others have in their trunk
    sequences = [*few, *long, *early, ([1, 2], 1), few[0]]
    assert sorted(len(grove.trunk) for grove in groves(sequences)) == [0, 100]
    together = scorer.log_probabilities(sequences)
    for own, sequence in list(zip(together, sequences, strict=True))[100:]:
        np.testing.assert_allclose(own, scorer.log_probabilities([sequence])[0], atol=2e-5)


def test_neighbours_are_compared_on_the_same_items():
    before, after = [0.0, 1.0] * 100, [0.0, 1.0] * 90 + [1.0, 1.0] * 10
    change = paired([*after, None], [*before, 1.0], 0)
    assert change and change["n"] == 200 and change["difference"] == pytest.approx(0.05) and change["sure"]
    assert change == paired([*after, None], [*before, 1.0], 0) and not paired(after, after, 0)["sure"]
    assert paired([None], [1.0], 0) is None
    bits = paired([10.0, 20.0], [8.0, 16.0], 0, [2.0, 4.0])
    assert bits and bits["difference"] == pytest.approx(1.0)


def test_any_number_of_models_stands_in_the_table_of_changes():
    names = ["base", "sft", "dpo", "rl"]
    plain = {"answers": {}, "choices": {}, "preferences": {}, "bits_per_byte": {"value": 2.0, "bytes": 9, "parts": {}}}
    exam = {"form": "cmmlu", "shots": 5, "headline": "acc", "n": 4, "unasked": 0, "chance": 0.25, "macro": {"acc": 0.5}}
    exam["measures"] = {"acc": {"value": 0.5, "stderr": 0.1, "low": 0.2, "high": 0.8}}
    step = {"difference": 0.1, "low": 0.05, "high": 0.2, "n": 40, "sure": True}
    changes = {"exam.cmmlu": step, "bits_per_byte": {**step, "sure": False}}
    models = [{**plain, "place": i, "exams": {"cmmlu": exam}, "against_before": changes if i else {}} for i in range(4)]
    rows = tax_rows(models)
    assert [row.label for row in rows] == ["Bits per byte of held-out text", "cmmlu"]
    assert [[step.kind for step in row.steps] for row in rows] == [["same"] * 3, ["up"] * 3] and len(names) == 4
    assert "CMMLU (acc, 5 examples)" in [row.label for row in comparison(models)]


def test_answers_that_loop_or_leave_the_language_are_counted():
    assert loops("so it is the same the same the same the same the same") and not loops("the tide comes and goes twice")
    items = [{"lang": "zh"}, {"lang": "en"}, {"lang": "en"}, {"lang": "en"}]
    said = ["潮水每天涨落两次。", "潮水", "<think>\nx\n</think>\n\n<answer>\ny\n</answer>", None]
    found = look(items, said, 0)
    assert found["language"]["value"] == pytest.approx(2 / 3) and found["language"]["n"] == 3
    assert found["loops"]["value"] == 0 < found["loops"]["high"] and found["well_formed"]["n"] == 1
    assert seen(items, said)["language"] == [1, 0, 1, None] and look([], [], 0) == {}
