"""What the READMEs and CONTRIBUTING.md say is done to the letter: every command, and the two stages they add."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import MICRO, ROOT, Home
from token_helpers import new_model, tokenizer_dir

from tasks.running.stage import PACKAGES

PAGES = ("README.md", "README.zh.md", "CONTRIBUTING.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PLAN = """
import contextlib, io, json, sys
from flows.cli import main
answers = []
for argv in json.load(sys.stdin):
    said, code = io.StringIO(), 0
    argv, file = (argv[: argv.index(">")], argv[-1]) if ">" in argv else (argv, None)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(argv)
        except SystemExit as end:
            code = end.code or 0
    if file:
        open(file, "w").write(said.getvalue())
    answers.append([" ".join(argv), code, said.getvalue()])
print(json.dumps(answers))
"""
"""Runs command lines one after the other in one process, whose imports are slow; ``>`` writes to a file."""


def blocks(page, *kinds):
    """The fenced blocks of these kinds in a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for kind, body in BLOCK.findall(text) if kind in kinds]


def commands(page):
    """Every command in a page's shell blocks, as words, without what is said beside it."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def spoken(page):
    """Commands of ours in running text."""
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [shlex.split(line) for line in re.findall(r"`(pipeline \w+[^`]*)`", text)]


def pipelines(page):
    """The arguments of each ``pipeline`` command."""
    return [words[1:] for words in commands(page) if words[0] == "pipeline"]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_there_is(page):
    from flows.parser import parsed, parser

    goals = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    deployed = [d["name"] for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
    own = [*pipelines(page), *(words[1:] for words in spoken(page))]
    assert len(own) >= 5
    for words in own:
        parsed(parser(), words[: words.index(">")] if ">" in words else words)
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in goals
        elif words[0] == "prefect":
            assert words[1:3] == ["deployment", "run"] and words[3].removeprefix("full-pipeline/") in deployed
        elif words[0] not in ("pipeline", "source"):
            assert shutil.which(words[0], path=os.path.dirname(sys.executable)), words[0]


def test_both_languages_have_the_same_commands_code_and_output():
    english, chinese = PAGES[:2]
    assert commands(english) == commands(chinese) and commands(english)
    assert blocks(english, "python", "") == blocks(chinese, "python", "")
    assert sorted(spoken(english)) == sorted(spoken(chinese))
    for page, other in ((english, chinese), (chinese, english)):
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        assert f"]({other})" in "".join(lines[:5]) and all(len(line) <= 120 for line in lines)


def test_the_folders_that_are_in_no_key_are_those_of_the_code():
    from tasks.running.stage import NEVER

    for page in PAGES[:2]:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(f"`{room.replace('.', '/')}`" in text for room in NEVER)
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `")]
    assert {name.replace("/", ".") for row in rows for name in re.findall(r"`([\w/]+)/`", row)} == NEVER


def test_the_picture_and_the_tests_that_the_documents_name_are_there():
    from flows.dag import stage_names

    drawn = (ROOT / "docs" / "dag.svg").read_text(encoding="utf-8")
    assert all(f">{name}</text>" in drawn for name in stage_names())
    named = re.findall(r"`(test_\w+)(?:…|`)", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(named) > 10 and all(f"def {name}" in code for name in named)


@pytest.fixture
def someone(tmp_path):
    """The folder of someone who has files of the names and forms that the README uses, and a model."""
    talk = [{"role": "user", "content": "What is a shard?"}, {"role": "assistant", "content": "A part of the text."}]
    pair = {"prompt": "What is a key?", "chosen": "What decides a hit.", "rejected": "A file."}
    records = {
        "qa.jsonl": {"prompt": "What is a stage?", "completion": "One step of the DAG."},
        "mine.jsonl": {"instruction": "Say hello.", "input": "", "output": "Hello."},
        "exam.jsonl": {"question": "What is a stage?", "choices": ["a step", "a file"], "correct": 0},
        "pretrain_hq.jsonl": {"text": "A stage is one step of the DAG, and an artifact is what it publishes."},
        "sft_mini_512.jsonl": {"conversations": talk},
        "dpo.jsonl": {side: [talk[0], {"role": "assistant", "content": pair[side]}] for side in ("chosen", "rejected")},
    }
    for name, record in records.items():
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for _ in range(4)), encoding="utf-8")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "books").mkdir()
    with gzip.open(tmp_path / "corpus" / "part-3.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(records["pretrain_hq.jsonl"]) + "\n")
    (tmp_path / "books" / "first.txt").write_text("A book of one sentence.", encoding="utf-8")
    from model.network.weights import save_model

    save_model(new_model(), tmp_path / "DIR", tokenizer_dir())
    return tmp_path


def test_every_command_on_own_data_is_planned_and_what_only_looks_looks(someone):
    lines = pipelines("README.md")
    mine = [words for words in lines if re.search(r"jsonl|DIR|mine", " ".join(words))]
    own = [["plan", *words[1:]] for words in mine if words[0] == "run"]
    seen = [words for words in lines if words[0] in ("plan", "config", "runs", "gc", "verify")]
    seen += [words[1:] for words in spoken("README.md") if words[1] in ("estimate", "presets")]
    assert len(own) >= 7 and len(seen) >= 6
    environment = {**os.environ, "PIPELINE_HOME": str(someone / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PLAN],
        input=json.dumps(seen + own),
        cwd=someone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert not [answer for answer in answers if answer[1]]
    assert all("ingest" in said and "never built" in said for line, _, said in answers[len(seen) :])


# -- the two stages of CONTRIBUTING.md -------------------------------------------------------------------------------


def follow(root):
    """Do to a copy of the project what CONTRIBUTING.md's code blocks say; gives the files they touch."""
    touched = set()
    for block in blocks("CONTRIBUTING.md", "python"):
        head, _, body = block.partition("\n")
        path = root / head.removeprefix("# ")
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(before + body, encoding="utf-8")
        touched.add(path)
    for block in blocks("CONTRIBUTING.md", "diff"):
        head, *hunks = block.split("@@\n")
        path = root / head.split()[1]
        text = path.read_text(encoding="utf-8")
        for lines in (hunk.splitlines(keepends=True) for hunk in hunks):
            old = "".join(line[1:] for line in lines if line[0] in " -")
            assert text.count(old) == 1, f"{path.name} has this {text.count(old)} times:\n{old}"
            text = text.replace(old, "".join(line[1:] for line in lines if line[0] in " +"))
        path.write_text(text, encoding="utf-8")
        touched.add(path)
    return sorted(touched)


@pytest.fixture(scope="module")
def extended(lab, tmp_path_factory):
    """A pipeline home whose code is a copy of the project with both stages in it."""
    root = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    touched = follow(root)
    more = {"PREFECT_API_URL": lab.env["PREFECT_API_URL"], "PYTHONPATH": str(root)}
    place = Home(tmp_path_factory.mktemp("home"), root=root, **more)
    place.touched = touched
    return place


def test_the_stage_in_the_readme_is_that_of_contributing():
    whole = "".join(blocks("CONTRIBUTING.md", "python"))
    assert blocks("README.md", "python") and all(block in whole for block in blocks("README.md", "python"))


def test_added_stages_keep_the_house_s_style(extended):
    files = [str(path) for path in extended.touched]
    assert len(files) == 6
    for check in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *check, *files]
        done = subprocess.run(ruff, cwd=extended.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_added_stages_are_planned_in_their_place_and_known_by_their_kind(extended, lab):
    plan = [p["stage"] for p in json.loads(extended("plan", MICRO, f"ingest.sources={lab.good}", "--json").stdout)]
    assert plan[:4] == ["ingest", "clean", "shorten", "language"]
    assert plan[plan.index("pretrain") : plan.index("dpo")] == ["pretrain", "anneal", "sft"]
    cut = json.loads(extended("plan", MICRO, f"ingest.sources={lab.good}", "--until", "anneal", "--json").stdout)
    assert cut[-1]["stage"] == "anneal"
    code = (
        "from flows.dag import *; from flows.runner import score_lines;"
        " print(*of_kind('documents'), '|', *model_names());"
        " print(score_lines({'anneal.bits_per_byte': 1.25})[1])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=extended.root, env=extended.env, capture_output=True, text=True, check=True
    ).stdout
    assert "clean shorten language" in said and "| base anneal sft dpo" in said and "1.250" in said


def test_an_added_stage_runs_is_cached_refreshed_shown_and_traced(extended, lab):
    asked = [f"ingest.sources={lab.good}", "shorten.max_characters=200", "--until", "shorten"]
    ran = extended.run(*asked)
    assert [s["name"] for s in ran["stages"]] == ["ingest", "clean", "shorten"]
    metrics = ran["by"]["shorten"]["metrics"]
    assert metrics["changed/shortened"] == metrics["docs_out"] > 0 and metrics["chars_out"] == 200 * metrics["docs_out"]
    again = extended.run(*asked, "--refresh", "shorten")
    assert [s["state"] for s in again["stages"]] == ["cached", "cached", "ran"]
    assert again["by"]["shorten"]["digest"] == ran["by"]["shorten"]["digest"]
    funnel = (extended.path / "runs" / again["run_id"] / "funnel.html").read_text(encoding="utf-8")
    assert "shortened" in funnel and "Cut documents that are too long" in funnel
    traced = extended("lineage", "shorten").stdout
    assert "shorten/" in traced and "clean/" in traced and "source good" in traced
    tracked = json.loads((extended.path / "runs" / ran["run_id"] / "mlflow.json").read_text())
    assert tracked["stages"]["shorten"]["run_id"]


# -- the gates -------------------------------------------------------------------------------------------------------


def test_a_file_that_has_grown_too_long_is_named_benchmarks_included(tmp_path):
    for name, lines in (("flows/long.py", 401), ("flows/short.py", 400), ("benchmarks/long.py", 500)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n" * lines)
    check = [sys.executable, str(ROOT / ".ci" / "file_sizes.py")]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.splitlines() == [
        "benchmarks/long.py: 500 lines, more than 400: split it",
        "flows/long.py: 401 lines, more than 400: split it",
    ]
    assert subprocess.run([*check, "flows/short.py"], cwd=tmp_path).returncode == 0


def test_a_commit_the_lint_target_and_ci_ask_for_the_same():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    asked = [hook["entry"].removeprefix(".venv/bin/") for hook in hooks]
    assert len(asked) == 4 and all(f"$(BIN)/{command}" in lint for command in asked)
    ci = (ROOT / ".ci" / "run").read_text()
    assert 0 < ci.index("make lint") < ci.index("make test")


def test_a_warning_of_our_own_code_fails_a_test(tmp_path):
    warn = "import warnings\n\n\ndef test_{}():\n    warnings.warn_explicit('old', UserWarning, 'f.py', 1, '{}')\n"
    for name, module in (("ours", "flows.cli"), ("theirs", "modelling.x")):
        (tmp_path / f"test_{name}.py").write_text(warn.format(name, module))
    run = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    said = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "FAILED test_ours.py::test_ours" in said and "FAILED test_theirs" not in said
