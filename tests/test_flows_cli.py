"""The command line against the world: displays that fail, hang-ups, arguments in any order, names that mean a run."""

import errno
import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import MICRO, ROOT
from rich.console import Console

from flows import runs
from flows.console import Watch, headline, losses
from flows.environment import Steady, illegible, spare_loopback
from flows.parser import parsed, parser
from flows.runner import advice, readable, score_lines
from pipeline.config.resources import Resources
from tasks.running.failure import WorkerFailed
from tasks.running.run import Run


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    return tmp_path


class Gone(io.StringIO):
    """A terminal that was closed."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    def isatty(self):
        return True


FINISHED = {"event": "stage_finished", "stage": "sft", "state": "ran", "seconds": 1.0, "path": "/none", "error": None}


@pytest.mark.parametrize(
    "words",
    [
        ["tiny", "a.b=1", "c.d=2", "--until", "encode"],
        ["tiny", "--until", "encode", "a.b=1", "c.d=2"],
        ["--until", "encode", "a.b=1", "tiny", "c.d=2"],
        ["a.b=1", "--until=encode", "-q", "c.d=2", "tiny"],
    ],
)
def test_overrides_may_stand_anywhere(words):
    args = parsed(parser(), ["run", *words])
    assert (args.preset, args.overrides, args.until) == ("tiny", ["a.b=1", "c.d=2"], "encode")


@pytest.mark.parametrize("words", [["run", "tiny", "--untl", "x"], ["show", "tiny", "more"], ["chat", "m", "--top"]])
def test_what_a_command_does_not_know_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(parser(), words)
    assert ended.value.code == 2 and "usage: pipeline" in capsys.readouterr().err


def test_a_display_that_fails_never_reaches_the_run(place):
    run, heard = Run("r", Resources()), []

    def broken(event):
        heard.append(event)
        raise RuntimeError("the display is gone")

    stream = Steady(Gone())
    run.listeners = [broken, Watch(Console(file=stream, force_terminal=True)), lambda event: heard.append(event)]
    with run:
        run.open()
        run.emit("stage_started", stage="sft")
        run.emit(**FINISHED, metrics={"dropped_too_long": 38, "records": 40})
    assert len(run.listeners) == 2 and stream.lost.errno == errno.EIO
    told = [json.loads(line)["event"] for line in (place / "runs/r/events.jsonl").read_text().splitlines()]
    assert [event for event in told if event != "note"] == ["stage_started", "stage_finished"]


def test_characters_that_an_encoding_lacks_are_replaced():
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding="ascii"))
    Console(file=stream).print("288 → 287 文件 ✓")
    stream.flush()
    assert raw.getvalue() == b"288 ? 287 ?? ?\n"


SLEEPER = """
import signal, sys, time
from flows.environment import settle
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
settle()
print("ready", flush=True)
time.sleep({})
"""


@pytest.mark.parametrize(("nohup", "seconds", "code"), [(False, 60, 7), (True, 2, 0)])
def test_a_terminal_that_closes_ends_a_process_like_sigterm_unless_nohup_says_go_on(nohup, seconds, code):
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", SLEEPER.format(seconds)])
    assert b"ready" in os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


def test_a_backspace_takes_a_whole_character():
    import termios

    child, terminal = pty.fork()
    if child == 0:
        settings = termios.tcgetattr(0)
        settings[0] &= ~0o40000  # a terminal that erases byte by byte
        termios.tcsetattr(0, termios.TCSANOW, settings)
        os.chdir(ROOT)
        code = "from flows.environment import *; settle(); erase_whole_characters(); print('> '); print(ascii(input()))"
        os.execve(sys.executable, [sys.executable, "-c", code], {**os.environ, "PYTHONUTF8": "1"})
    said = os.read(terminal, 1000)
    os.write(terminal, "能".encode() + b"\x7f" + "你".encode() + b"\n")
    while b"'" not in said:
        said += os.read(terminal, 1000)
    os.waitpid(child, 0)
    os.close(terminal)
    assert b"'\\u4f60'" in said


def test_a_run_ends_well_behind_a_proxy_with_an_ascii_pipe_that_nobody_reads(lab):
    nobody = "http://127.0.0.1:9"
    env = lab.env | {"PYTHONIOENCODING": "ascii", "http_proxy": nobody, "HTTPS_PROXY": nobody}
    before = set((lab.path / "runs").glob("*"))
    (lab.path / "own.jsonl").write_text(lab.good.read_text().replace("Document", "Own document"))
    command = lab.command("run", MICRO, "--until", "clean", f"ingest.sources={lab.path}/own.jsonl")
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"full-pipeline")
        process.stdout.close()
        said = process.stderr.read()
    (run,) = set((lab.path / "runs").glob("*")) - before
    assert process.returncode == 0 and (run / "summary.json").is_file(), said
    assert b"Traceback" not in said and b"teaching has no effect" not in said


def test_loopback_is_never_behind_a_proxy(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    spare_loopback()
    assert "NO_PROXY" not in os.environ
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "intern.example,localhost")
    monkeypatch.setenv("no_proxy", "")
    spare_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intern.example,localhost,127.0.0.1,::1"


def test_an_argument_that_is_no_text_is_named():
    assert illegible(["run", "文.jsonl"]) == []
    assert illegible([os.fsdecode(b"caf\xe9.jsonl")])[0].startswith("caf\\xe9.jsonl  is not")


def test_every_kind_of_loss_is_a_line_with_its_option(tmp_path):
    (tmp_path / "stats.json").write_text(
        json.dumps({"files_of_unknown_type": {"mine": 3}, "changed": {"recoded_gb18030": 2, "email": 4}})
    )
    assert losses(FINISHED | {"metrics": {"records": 40, "dropped": 38, "dropped_too_long": 38, "truncated": 1}}) == [
        "38 of 40 chats dropped: too_long 38 (sft.seq_len)",
        "chats that lost their oldest exchanges (sft.seq_len): 1",
    ]
    ingested = {"docs_in": 10, "dropped/bad_json": 2, "dropped/sampled_out": 1, "dropped/empty": 0}
    assert losses(FINISHED | {"stage": "ingest", "path": str(tmp_path), "metrics": ingested}) == [
        "3 of 10 documents dropped: bad_json 2, sampled_out 1 (ingest.sample)",
        "source mine: files of no form that is read: 3",
        "files read as gb18030, not UTF-8: 2",
    ]
    assert losses(FINISHED | {"stage": "evaluate", "metrics": {"exam_skipped": 4, "lost/too_long": 1}}) == [
        "1 documents dropped: too_long 1",
        "lines of evaluation sets that cannot be read (evaluate.sources): 4",
    ]
    assert losses(FINISHED | {"metrics": {"steps": 3}}) == []


def test_a_stage_counts_in_its_own_words():
    assert headline({"docs_in": 1280, "docs_out": 1270}, "chats") == "1,280 → 1,270 chats"
    assert headline({"docs_in": 1280, "docs_out": 1280}, "preferences") == "1,280 → 1,280 pairs"
    assert headline({"docs_in": 3810, "docs_out": 4900}, "shard") == "3,810 documents, 4,900 with repeats"
    assert headline({"docs_out": 12}, "ingest") == "12 documents"


def test_percentages_say_of_how_many_and_what_guessing_gives():
    metrics = {"base.bits_per_byte": 2.0, "sft.bits_per_byte": 1.5, "base.choices": 0.30, "sft.choices": 0.60}
    text = "\n".join(score_lines(metrics | {"base.choices.n": 200, "sft.choices.n": 200}))
    assert "multiple choice right (of 200)" in text and "30%*" in text and "60%*" not in text and "60%" in text
    assert "no better than guessing" in text
    assert "(of" not in "\n".join(score_lines(metrics)), "without n nothing is said of luck"


@pytest.mark.parametrize(
    ("error", "same"),
    [
        (ValueError("shard.val_share leaves nothing"), False),
        (WorkerFailed("out of memory", "out_of_memory"), False),
        (WorkerFailed("killed", "signal"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (RuntimeError("clean failed on shard 3: OSError: [Errno 28] No space left on device: 'x'"), True),
    ],
)
def test_advice_fits_the_failure(error, same, place):
    assert ("same command" in advice(error)) == same
    assert "Traceback" not in "\n".join(readable(RuntimeError(f"{error}\nTraceback (most recent call last):\n  x")))


def test_a_stage_fails_when_more_records_are_unusable_than_allowed(tmp_path):
    from pipeline.config.sft import SftSection
    from storage.store import Artifact
    from tasks.tuning import encode_records

    (tmp_path / "records.jsonl").write_text("")
    records = Artifact("chats", "k", "d", tmp_path)

    def encode(*_, **__):
        return {"records": 40, "dropped": 38, "dropped_too_long": 38}

    with pytest.raises(ValueError, match=r"38 of 40 records cannot.*too_long 38.*sft.max_dropped = 0.5.*sft.seq_len"):
        encode_records(encode, records, SftSection(), tmp_path, tmp_path, SimpleNamespace(name="sft"))
    kept = encode_records(
        encode, records, SftSection(max_dropped=0.95), tmp_path, tmp_path, SimpleNamespace(name="sft")
    )
    assert kept["dropped"] == 38 and SftSection(max_dropped=1).identity() == SftSection().identity()


def a_run(place, name, preset="tiny", model="sft", overrides=(), until=None, **more):
    directory = place / "runs" / name
    directory.mkdir(parents=True)
    facts = {"preset": preset, "overrides": list(overrides), "until": until}
    (directory / "run.json").write_text(json.dumps(facts))
    scores = {"sft.bits_per_byte": 1.5, "sft.choices": 0.5}
    stages = [{"name": model, "key": name, "metrics": {}}, {"name": "evaluate", "key": name, "metrics": scores}]
    if model:
        (directory / "summary.json").write_text(json.dumps({"preset": preset, "stages": stages}))


def test_a_preset_means_its_newest_whole_run_and_says_so(place, capsys):
    a_run(place, "20260101-100000-aaaaaa")
    a_run(place, "20260102-100000-bbbbbb", overrides=["sft.epochs=9"])
    a_run(place, "20260103-100000-cccccc", model="pretrain", until="pretrain")
    a_run(place, "20260104-100000-dddddd", model=None)
    a_run(place, "20260105-100000-eeeeee", preset="other")
    assert runs.meant("tiny").id == "20260102-100000-bbbbbb"
    assert "sft/20260102-100" in runs.describe(runs.meant("tiny")) and "sft.epochs=9" in runs.describe(
        runs.meant("tiny")
    )
    assert runs.meant("20260103").model["name"] == "pretrain" and runs.meant("nobody") is None
    assert runs.pin("tiny", True) == 0 and runs.pin("nobody", True) == 2
    capsys.readouterr()
    runs.print_runs(False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0][-6:] for line in lines[:-1]] == ["eeeeee", "dddddd", "cccccc", "bbbbbb", "aaaaaa"]
    assert "pinned" in lines[3] and "tiny sft.epochs=9" in lines[3] and "choices 50%" in lines[3]
    assert "killed" in lines[1] and "5 runs in" in lines[-1]
    runs.pin("20260102", False)
    assert not runs.meant("tiny").pinned


def test_looking_leaves_nothing_behind_and_names_the_store(tmp_path):
    env = {**os.environ, "PIPELINE_HOME": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    for words, code in ((["plan", "tiny", "--until", "shard"], 0), (["down"], 0), (["show", "tiny"], 2)):
        command = [sys.executable, "-m", "flows.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        assert words == ["down"] or str(tmp_path / "none") in done.stdout + done.stderr
    assert not (tmp_path / "none").exists()


def test_dead_runs_become_crashed_and_living_ones_stay(place, prefect_url):
    import httpx

    from flows.zombies import TAG, bury_dead, own_tag

    gone = subprocess.run(
        [sys.executable, "-c", "from flows.zombies import own_tag; print(own_tag())"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    tags = {"early": gone, "starting": own_tag(), "odd": f"{TAG}1 x y", "far": f"{gone}-other"}
    flow = httpx.post(f"{prefect_url}/flows/", json={"name": "buried"}).json()["id"]
    ids = {}
    for name in ("dead", "alive", "elsewhere"):
        state = {"type": "RUNNING", "name": "Running"}
        ids[name] = httpx.post(f"{prefect_url}/flow_runs/", json={"flow_id": flow, "state": state}).json()["id"]
        host = {"host": "another machine"} if name == "elsewhere" else {}
        (place / "runs" / name).mkdir(parents=True)
        (place / "runs" / name / "run.json").write_text(json.dumps({"prefect": {"flow_run_id": ids[name]}, **host}))
    for name, tag in tags.items():
        facts = {"flow_id": flow, "state": {"type": "RUNNING", "name": "Running"}, "tags": [tag], "name": name}
        ids[name] = httpx.post(f"{prefect_url}/flow_runs/", json=facts).json()["id"]
    with open(place / "runs/alive/alive", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert bury_dead(place, prefect_url) == ["dead", "early"]
        assert bury_dead(place, prefect_url) == []
    found = {name: httpx.get(f"{prefect_url}/flow_runs/{i}").json()["state"]["type"] for name, i in ids.items()}
    assert {name for name, state in found.items() if state == "CRASHED"} == {"dead", "early"}
    assert {state for name, state in found.items() if name not in ("dead", "early")} == {"RUNNING"}
    assert bury_dead(place, "http://127.0.0.1:9/api") == [], "a server that is down stops nobody"


def test_the_first_line_of_every_help_needs_no_library():
    code = (
        "import sys, flows.cli; from flows.parser import parser; parser();"
        " print([m for m in ('pydantic', 'rich', 'prefect', 'torch', 'argcomplete') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tab_proposes_commands_presets_stages_and_options(tmp_path):
    def proposed(line):
        env = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        env |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "said"), "_ARGCOMPLETE_IFS": "\n"}
        command = [sys.executable, "-c", "import flows.cli; flows.cli.main()"]
        subprocess.run(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, check=True)
        return {name.strip() for name in (tmp_path / "said").read_text().split("\n")}

    assert "plan" in proposed("pipeline pl")
    assert {"tiny", "gpu"} <= proposed("pipeline run ")
    assert "encode" in proposed("pipeline run tiny --until enc")
    assert "pretrain.optim.lr=" in proposed("pipeline run tiny pretrain.optim.l")
