"""Every file operation of every data stage, and of a training, as a crash point: the stage is killed there, or the disk
is full from there on, it is run again, and the artifact must be the one that an undisturbed run makes.

    python benchmarks/crash_points.py [--stages dedup,shard] [--every N] [--only kill|full] [--scratch DIR]

Operations are those that Python reports to its audit hooks (opening for writing, mkdir, rename, link, unlink, rmdir)
below the store. A kill at an opening leaves the file there and empty, as a kill right after it would. A full disk
fails that operation and all later ones that need room; the error must name a path, what is needed and what is free.
After the second run the store holds the artifact and nothing else: no lease, no partial directory, no unfinished file.
A training (one rank, in the same process; spec, checkpoints, curve, model, result) must also have every step once in
its curve, with the loss that it has undisturbed.

Each attempt is a process of its own, forked from one that has loaded and compiled everything.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from specs import spec as make_spec  # noqa: E402

from flows.dag import (  # noqa: E402
    chats,
    clean,
    decontaminate,
    dedup,
    encode,
    ingest,
    language,
    preferences,
    pretrain,
    shard,
    tokenizer,
)
from pipeline.config.resources import Resources  # noqa: E402
from pipeline.config.tree import load  # noqa: E402
from pipeline.sources import resolve  # noqa: E402
from storage.digest import sha256_json  # noqa: E402
from storage.files import write_text  # noqa: E402
from storage.room import DiskFull, room  # noqa: E402
from storage.store import Artifact, Store, StoreError  # noqa: E402
from tasks.running.inputs import several  # noqa: E402
from tasks.running.sources import SourceSet  # noqa: E402

KEY = "c" * 32
KILLED, FULL, OTHER = 9, 3, 4
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NEED_ROOM = frozenset({"open", "os.mkdir", "os.rename", "os.link"})
OPERATIONS = NEED_ROOM | {"os.remove", "os.rmdir", "os.truncate"}


class Fault:
    """An audit hook that counts file operations below ``root`` and strikes at the one numbered ``at``."""

    def __init__(self, root: Path, at: int, how: str) -> None:
        self.root, self.at, self.how, self.count, self.inside = str(root), at, how, 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside or event not in OPERATIONS or not self._counts(event, arguments):
            return
        self.count += 1
        if self.how == "kill" and self.count == self.at:
            if event == "open":
                self.inside = True
                os.close(os.open(arguments[0], arguments[2] | os.O_CREAT, 0o666))
            os._exit(KILLED)
        if self.how == "full" and self.count >= self.at and event in NEED_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(arguments[0]))

    def _counts(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        below = os.fsdecode(path).startswith(self.root)
        return below and (event != "open" or bool(arguments[2] & WRITES))


@dataclass
class Case:
    """A stage with its section and inputs."""

    stage: Any
    section: Any
    inputs: tuple[Any, ...]

    def build(self, root: Path) -> str:
        """Make the artifact as a run does, without Prefect; its digest."""
        store, name = Store(root), self.stage.name
        given = self.stage.bind(self.inputs)
        with room(store.directory(name, KEY), name, self.stage.need(given, store)):
            store.check()
            with store.lease(name, KEY) as lease:
                made = store.lookup(name, KEY)
                if made is None:
                    out = store.partial(name, KEY)
                    self.stage.fn(self.section, **given, on=Resources(workers=1), out=out, report=_quiet)
                    lease.confirm()
                    made = store.publish(
                        name, KEY, {"inputs": self.stage.listed(given), "created": ""}, self.stage.listings(given)
                    )
        return made.digest

    def artifact(self, root: Path, digest: str) -> Artifact:
        return Artifact(self.stage.name, KEY, digest, Store(root).directory(self.stage.name, KEY))


@dataclass
class Training:
    """The pretrain stage's worker on a token dataset."""

    tokens: Path
    tokenizer: Path
    stage = pretrain

    def build(self, root: Path) -> str:
        """Train and publish; the digest, and that of the curve."""
        from model.running.setup import Ranks
        from model.specs.base import parse
        from model.specs.train import TrainSpec
        from model.training.trainer import Trainer

        store, name = Store(root), self.stage.name
        with room(store.directory(name, KEY), name, 0):
            store.check()
            with store.lease(name, KEY) as lease:
                made = store.lookup(name, KEY)
                if made is None:
                    out = store.partial(name, KEY)
                    values = self.spec(out)
                    write_text(out / "_run" / "spec.json", json.dumps(values))
                    spec = parse(TrainSpec, values)
                    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                        Trainer(spec, Ranks(spec.how)).train()
                    lease.confirm()
                    made = store.publish(name, KEY, {"inputs": [], "created": ""})
        lines = (made.path / "_run" / "metrics.jsonl").read_text().splitlines()
        curve = [[r["step"], r["loss"]] for line in lines if "loss" in (r := json.loads(line))]
        return f"{made.digest}-{sha256_json(curve)}"

    def spec(self, out: Path) -> dict[str, Any]:
        places = {"data": str(self.tokens), "tokenizer": str(self.tokenizer), "out": str(out)}
        shape = {"dim": 16, "layers": 1, "heads": 2, "kv_heads": 2, "ffn": 32}
        how = {
            "threads": 1,
            "checkpoint_every": 2,
            "dtype": "fp32",
            "device": "cpu",
            "compile": "off",
            "engine": "plain",
        }
        return make_spec(**places, **how, model=shape, seq_len=32, batch_tokens=128, steps=7)


def _quiet(*_: Any) -> None:
    pass


_quiet.note = _quiet  # type: ignore[attr-defined]


def cases(scratch: Path) -> Iterator[Case | Training]:
    """The data stages and a training in order, each on what the one before made from small made-up inputs."""
    texts, asked, liked, exam = _inputs(scratch / "given")
    cfg = load(str(ROOT / "tests" / "micro.toml"), [f"ingest.sources={texts}", "tokenizer.vocab_size=400"])
    few = cfg.ingest.model_copy(update={"sample": {"packed.jsonl.gz": 0.02}})
    exams = SourceSet("exam", tuple(resolve([str(exam)], "exam")))
    root = scratch / "store"

    def made(case: Case) -> Artifact:
        return case.artifact(root, case.build(root))

    history: list[Artifact] = []
    yield (case := Case(ingest, few, (SourceSet("text", tuple(resolve(texts.split(","), "text"))),)))
    for stage, section, more in (
        (clean, cfg.clean, ()),
        (language, cfg.language, ()),
        (dedup, cfg.dedup, (None,)),
        (decontaminate, cfg.decontaminate, (exams,)),
    ):
        history.append(made(case))
        yield (case := Case(stage, section, (history[-1], *more)))
    history.append(made(case))
    for stage, path, kind in ((chats, asked, "chat"), (preferences, liked, "preference")):
        yield Case(stage, cfg.decontaminate, (SourceSet(kind, tuple(resolve([str(path)], kind))), exams))
    yield (case := Case(shard, cfg.shard, (history[-1], several(*history))))
    shards = made(case)
    yield (case := Case(tokenizer, cfg.tokenizer, (shards,)))
    vocabulary = made(case)
    yield (case := Case(encode, cfg.encode, (shards, vocabulary)))
    yield Training(made(case).path, vocabulary.path)


def _inputs(given: Path) -> tuple[str, Path, Path, Path]:
    """Plain and compressed texts with copies and near copies, chats, preference pairs and an exam."""
    given.mkdir(parents=True)
    draw = random.Random(5)
    words = ["".join(draw.choice("abcdefghijklmnoprstuw") for _ in range(draw.randrange(2, 9))) for _ in range(3000)]

    def text(n: int) -> str:
        sentence = (" ".join(draw.choices(words, k=12)).capitalize() + ". the and of" for _ in range(n))
        return " ".join(sentence)

    plain = [text(8) for _ in range(40)]
    plain += [plain[0], plain[1].replace("the and", "an other", 1), plain[2] + " More of it."]
    _write(given / "plain.jsonl", [{"text": t} for t in plain])
    packed = "".join(json.dumps({"text": text(30)}) + "\n" for _ in range(700))
    (given / "packed.jsonl.gz").write_bytes(gzip.compress(packed.encode(), mtime=0))
    question = "Which of the seven bridges of the old harbour was built last, and who paid for the stones of it?"
    chat = [
        {"messages": [{"role": "user", "content": text(1)}, {"role": "assistant", "content": text(2)}]}
        for _ in range(20)
    ]
    chat.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "The third."}]})
    pairs = [{"prompt": text(1), "chosen": text(1), "rejected": text(1)} for _ in range(20)]
    exam = [{"question": question, "keywords": [["third"]]}]
    for name, records in (("chats", chat), ("pairs", pairs), ("exam", exam)):
        _write(given / f"{name}.jsonl", records)
    texts = f"{given / 'plain.jsonl'},{given / 'packed.jsonl.gz'}"
    return texts, given / "chats.jsonl", given / "pairs.jsonl", given / "exam.jsonl"


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def forked(work: Callable[[], str]) -> tuple[int, str]:
    """Exit code and answer of ``work`` in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            answer = work()
        except (DiskFull, StoreError) as error:
            code, answer = FULL, str(error)
        except BaseException as error:
            code, answer = OTHER, f"{type(error).__name__}: {error}"
        os.write(write, answer.encode("utf-8", "replace")[:60_000])
        os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), answer


def count(case: Case | Training, scratch: Path) -> tuple[int, str]:
    """How many file operations an undisturbed build has, and the digest it gives."""
    root = scratch / "whole"
    shutil.rmtree(root, ignore_errors=True)

    def work() -> str:
        fault = Fault(root, 0, "count")
        sys.addaudithook(fault)
        digest = case.build(root)
        return f"{fault.count} {digest}"

    code, answer = forked(work)
    if code:
        raise RuntimeError(f"{case.stage.name}: the undisturbed run failed: {answer}")
    operations, digest = answer.split()
    return int(operations), digest


def strike(case: Case | Training, scratch: Path, at: int, how: str, digest: str) -> str | None:
    """Disturb a build at one operation and build again; what is wrong then, or None."""
    root = scratch / "struck"
    shutil.rmtree(root, ignore_errors=True)

    def work() -> str:
        sys.addaudithook(Fault(root, at, how))
        return case.build(root)

    code, answer = forked(work)
    if how == "full" and code == FULL and not ("needed" in answer and "free" in answer and str(root) in answer):
        return f"the message lacks path or need: {answer}"
    if code not in (0, KILLED if how == "kill" else FULL):
        return f"ended with {code}: {answer}"
    code, answer = forked(lambda: case.build(root))
    if code:
        return f"the second run failed: {answer[-600:]}"
    if answer != digest:
        return f"the second run made {answer[:12]} and not {digest[:12]}"
    left = [
        p.name for p in root.rglob("*") if p.name.endswith((".lease", ".tmp", ".partial")) or ".replaced-" in p.name
    ]
    return f"left behind: {', '.join(left)}" if left else None


def points(operations: int, every: int) -> range:
    """The operations to strike at: the last, and each ``every``-th before it."""
    return range((operations - 1) % every + 1, operations + 1, every)


def main() -> None:
    """Print a line per stage and kind of fault, then what went wrong; exit code 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", choices=("kill", "full"))
    parser.add_argument("--scratch", type=Path)
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="crash-points-", dir=args.scratch))
    os.environ |= {"PIPELINE_HOME": str(scratch / "home"), "TOKENIZERS_PARALLELISM": "false"}
    os.fsync = lambda fd: None  # a process is killed and no machine, so what was written is there; half the time goes
    wrong: list[str] = []
    print(f"{'stage':<14} {'fault':<5} {'points':>7} {'wrong':>6} {'seconds':>8}")
    for case in cases(scratch):
        case.build(scratch / "warm")  # compiled once here, and not in each process
        if args.stages and case.stage.name not in args.stages.split(","):
            continue
        operations, digest = count(case, scratch)
        for how in ("kill", "full"):
            if args.only in (None, how):
                began, tried = time.monotonic(), points(operations, args.every)
                found = [(at, problem) for at in tried if (problem := strike(case, scratch, at, how, digest))]
                print(
                    f"{case.stage.name:<14} {how:<5} {len(tried):>7} {len(found):>6} {time.monotonic() - began:>8.1f}",
                    flush=True,
                )
                wrong += [f"{case.stage.name} {how} at {at} of {operations}: {problem}" for at, problem in found]
    print("\n".join(wrong))
    shutil.rmtree(scratch)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
