"""The standard exams agree with lm-evaluation-harness item by item: made files of each form, its own task files."""

import json

import numpy as np
import pytest
from harness_helpers import official, run_harness
from token_helpers import new_model, tokenizer_dir

from model.generation.measures import credits, table
from model.generation.scorer import Scorer
from model.generation.standard import ask
from model.network.weights import save_model
from pipeline.evaluation.standard.named import recognised
from pipeline.evaluation.standard.prompts import read_standard

WORDS = [
    "the",
    "tide",
    "harbour",
    "lamp",
    "",
    "pier",
    "red",
    "blue",
    "词元",
    "文本",
    "损失",
    "12",
    "x=3,",
    "(a)",
    "[b]?",
]


def words(i, n):
    return " ".join(WORDS[(i * 7 + k * 3) % len(WORDS)] for k in range(n)).strip() or "tide"


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(header)] if header else []
    lines += [",".join(f'"{cell}"' for cell in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def lettered(n, seed):
    return [[f"{words(i + seed, 5)} ", *(words(i + seed + k, 2) for k in range(4)), "ABCD"[i % 4]] for i in range(n)]


def as_json(path, names, rows):
    return jsonl(path, [dict(zip(names, row, strict=True)) for row in rows])


def files(root):
    """A made exam of each form: {form: (what is named, the harness's tasks by subject)}."""
    made, tasks = {}, {}
    columns = {
        "ceval": "id question A B C D answer",
        "cmmlu": " Question A B C D Answer",
        "mmlu": "question A B C D answer",
    }
    asked = {"ceval": "val", "cmmlu": "test", "mmlu": "test"}
    for form, subject in (("ceval", "law"), ("cmmlu", "agronomy"), ("mmlu", "us_foreign_policy")):
        names = columns[form].split(" ")
        numbered = [] if form == "mmlu" else [0]
        for split, n in (("dev", 5), (asked[form], 6)):
            rows = lettered(n, n)
            file = f"{subject}.csv" if form == "cmmlu" else f"{subject}_{split}.csv"
            csv(root / form / split / file, names if numbered else None, [[*numbered, *row] for row in rows])
            if form == "mmlu":
                rows = [[row[0], row[1:5], "ABCD".index(row[5])] for row in rows]
                as_json(root / f"{form}-{split}.jsonl", ["question", "choices", "answer"], rows)
            else:
                as_json(root / f"{form}-{split}.jsonl", [n or "n" for n in names], [[*numbered, *row] for row in rows])
        task = {"ceval": "ceval/ceval-valid_law", "cmmlu": "cmmlu/cmmlu_agronomy"}.get(
            form, "mmlu/default/mmlu_us_foreign_policy"
        )
        made[form] = root / form
        tasks[form] = {subject: (task, {s: root / f"{form}-{s}.jsonl" for s in ("dev", asked[form])})}
    arc = [
        {
            "id": f"Mercury_{i}",
            "question": words(i, 4),
            "choices": {"text": [words(i + k, 2) for k in range(3 + i % 2)], "label": list("1234" if i % 2 else "ABC")},
            "answerKey": "4" if i % 2 else "B",
        }
        for i in range(9)
    ]
    splits = [jsonl(root / "arc" / f"ARC-Easy-{s}.jsonl", rows) for s, rows in (("Train", arc[:4]), ("Test", arc[4:]))]
    made["arc"] = root / "arc"
    tasks["arc"] = {"ARC-Easy": ("arc/arc_easy", dict(zip(("train", "test"), splits, strict=True)))}
    tasks["arc"]["ARC-Easy"][1]["validation"] = splits[0]
    book = [
        {
            "id": f"7-{i}",
            "question": {"stem": words(i, 3), "choices": arc[i]["choices"]},
            "answerKey": arc[i]["answerKey"],
        }
        for i in range(8)
    ]
    flat = [
        {"question_stem": b["question"]["stem"], "choices": b["question"]["choices"], "answerKey": b["answerKey"]}
        for b in book
    ]
    for i, row in enumerate(book):  # as its authors publish it: choices as a list of objects
        pairs = zip(arc[i]["choices"]["text"], arc[i]["choices"]["label"], strict=True)
        row["question"]["choices"] = [{"text": text, "label": label} for text, label in pairs]
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 8))):
        jsonl(root / "openbook" / "Main" / f"{split}.jsonl", book[part])
        jsonl(root / f"openbook-{split}.jsonl", flat[part])
    made["openbookqa"] = root / "openbook"
    own = {s: root / f"openbook-{s}.jsonl" for s in ("train", "test")} | {"validation": root / "openbook-train.jsonl"}
    tasks["openbookqa"] = {"": ("openbookqa/openbookqa", own)}
    swag = [
        {
            "activity_label": "Washing [title] up",
            "ctx_a": f"[header] {words(i, 3)} [title] {words(i, 2)}",
            "ctx_b": words(i + 1, 2) if i % 2 else "",
            "ctx": "c",
            "endings": [f"{words(i + k, 3)} [substeps]  x" for k in range(4)],
            "label": i % 4,
        }
        for i in range(9)
    ]
    goals = [{"goal": words(i, 3), "sol1": words(i + 1, 3), "sol2": words(i + 2, 4)} for i in range(9)]
    labels = [i % 2 for i in range(9)]
    for split, part in (("train", slice(0, 5)), ("valid", slice(5, 9))):
        jsonl(root / "swag" / f"hellaswag_{split}.jsonl", swag[part])
        jsonl(root / "piqa" / f"{split}.jsonl", goals[part])
        (root / "piqa" / f"{split}-labels.lst").write_text("".join(f"{label}\n" for label in labels[part]))
        both = [{**goal, "label": label} for goal, label in zip(goals[part], labels[part], strict=True)]
        jsonl(root / f"piqa-{split}.jsonl", both)
    made |= {"hellaswag": root / "swag", "piqa": root / "piqa"}
    swags = {"train": root / "swag" / "hellaswag_train.jsonl", "validation": root / "swag" / "hellaswag_valid.jsonl"}
    tasks["hellaswag"] = {"": ("hellaswag/hellaswag", swags)}
    tasks["piqa"] = {"": ("piqa/piqa", {"train": root / "piqa-train.jsonl", "validation": root / "piqa-valid.jsonl"})}
    pairs = [{"sentence_good": words(i, 5) + ".", "sentence_bad": words(i + 1, 5) + "."} for i in range(6)]
    tasks["blimp"] = {
        "drop_argument": ("blimp/drop_argument", {"train": jsonl(root / "blimp" / "drop_argument.jsonl", pairs)})
    }
    made["blimp"] = root / "blimp"
    maths = [{"question": words(i, 6), "answer": f"{words(i, 3)}\n#### {i * 1000 + 5:,}"} for i in range(9)]
    sums = {s: jsonl(root / "sums" / f"gsm8k_{s}.jsonl", r) for s, r in (("train", maths[:6]), ("test", maths[6:]))}
    made["gsm8k"], tasks["gsm8k"] = root / "sums", {"": ("gsm8k/gsm8k", sums)}
    return made, tasks


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("exam") / "model"
    save_model(new_model(max_seq_len=320), path, tokenizer_dir())
    return path


@pytest.fixture(scope="module")
def both(model, tmp_path_factory):
    """What we and the harness give for each form, with two examples (of a long one the left is cut off)."""
    root = tmp_path_factory.mktemp("files")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(root / "cache"))
    made, tasks = files(root)
    sources, others, wrong = recognised([str(path) for path in made.values()], 2)
    assert not wrong and not others and [s.form for s in sources] == list(made)
    scorer = Scorer(str(model), "cpu", "fp32", 4, lambda n: None)
    ours = {}
    for source in sources:
        items = read_standard(source, source.form, 2)["items"]
        ours[source.form] = (items, ask(scorer, items))
    named = {
        f"{form}__{subject}".lower().replace("-", "_"): {"include": official(f"{task}.yaml"), "data_files": data}
        for form, subjects in tasks.items()
        for subject, (task, data) in subjects.items()
    }
    theirs = run_harness(root / "tasks", model, named, shots=2)
    monkeypatch.undo()
    return ours, theirs


FORMS = ["ceval", "cmmlu", "mmlu", "arc", "openbookqa", "hellaswag", "piqa", "blimp", "gsm8k"]


@pytest.mark.parametrize("form", FORMS)
def test_every_item_agrees_with_the_harness(both, form):
    (items, said), (name, samples) = (
        both[0][form],
        next((n, s) for n, s in both[1]["samples"].items() if n.startswith(form)),
    )
    if form == "gsm8k":
        for name_of, measure in (("strict-match", "exact_match"), ("flexible-extract", "flexible")):
            theirs = {sample["doc_id"]: sample["exact_match"] for sample in samples if sample["filter"] == name_of}
            own = [credits(item, one)[measure] for item, one in zip(items, said, strict=True)]
            assert own == [theirs[i] for i in range(len(items))]
        samples = [sample for sample in samples if sample["filter"] == "strict-match"]
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    assert len(samples) == len(items) > 2
    for item, own, sample in zip(items, said, samples, strict=True):
        first = (
            sample["arguments"][0]
            if isinstance(sample["arguments"], (list, tuple))
            else sample["arguments"]["gen_args_0"]
        )
        assert (first["arg_0"] if isinstance(first, dict) else first[0]) == item["context"]
        if form == "gsm8k":
            assert own["answer"] == sample["resps"][0][0]
            continue
        theirs = [response[0][0] for response in sample["resps"]]
        np.testing.assert_allclose(own["log_likelihood"], np.array(theirs, float), atol=1e-4)
        assert int(np.argmax(own["log_likelihood"])) == int(np.argmax(np.array(theirs, float)))
    found = both[1]["results"][name]
    mine = table(items, said)["measures"]
    for measure in ("acc", "acc_norm"):
        if f"{measure},none" in found:
            assert mine[measure]["value"] == pytest.approx(found[f"{measure},none"])
            assert mine[measure]["stderr"] == pytest.approx(found[f"{measure}_stderr,none"])
