"""Which edits cost which stages: edits of a copy of the project, and the stages whose code fingerprint changes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import dag
from storage.code import fingerprint
from tasks.running.stage import NEVER, PACKAGES, Stage

ROOT = Path(__file__).parent.parent
STAGES = {name: s for name, s in vars(dag).items() if isinstance(s, Stage)}
DOCUMENT_STAGES = {"ingest", "clean", "language", "dedup", "decontaminate", "shard", "chats", "preferences", "problems"}
TUNING = {"sft", "reward", "dpo"}
TUNED = {*TUNING, "rl"}
TRAINING = {"pretrain", *TUNED}
ALL_MODELS = {*TRAINING, "sample", "evaluate", "quantize", "export"}
CHATTING = {"tokenizer", "encode", *TUNED, "sample", "evaluate", "quantize", "export"}
"""Stages that write conversations, or could."""
EXAMS = {"decontaminate", "chats", "evaluate", "sample", "problems"}
"""Stages that read exams, apart from ``preferences``."""
EDITS = [
    # what runs, watches, shows or estimates costs nothing
    ("model/running/estimate/memory.py", "USABLE = 0.92", "USABLE = 0.9", set()),
    ("model/running/devices.py", "312e12", "313e12", set()),
    ("model/running/meter.py", "WARM_UP = 3", "WARM_UP = 4", set()),
    ("model/running/setup.py", "True: 5.0", "True: 6.0", set()),
    ("tasks/running/guard.py", "import", "import sys as _s\nimport", set()),
    ("tasks/running/processes.py", "POLL_SECONDS = ", "POLL_SECONDS = 2 * ", set()),
    ("tasks/tracking/forms.py", "def as_key", "def as_key_of", set()),
    ("pipeline/running/executor.py", "def run_shards", "LIMIT = 1\n\n\ndef run_shards", set()),
    ("pipeline/config/training.py", "slots in one packed row", "places in one packed row", set()),
    ("pipeline/config/sft.py", "5 is usual", "5 is common", set()),
    ("pipeline/config/tree.py", "is not an override", "is no override", set()),
    ("pipeline/pages/funnel/page.py", "SHOWN, PAIRS = 8, 4", "SHOWN, PAIRS = 8, 5", set()),
    ("pipeline/pages/lineage/lineage.html.j2", "<", "<!-- --><", set()),
    # the pages of a stage
    ("pipeline/pages/report/report.html.j2", "<", "<!-- --><", {"report"}),
    ("pipeline/pages/parts/style.css", "{", "{ ", {"report"}),
    ("pipeline/pages/report/scores.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"report"}),
    ("storage/lease.py", "import", "import sys as _s\nimport", set()),
    ("flows/console.py", "def duration", "def duration_of", set()),
    # data
    ("pipeline/data/rules.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"clean"}),
    ("pipeline/data/terms.py", "GAMBLING = {", "GAMBLING = dict() or {", {"clean"}),
    ("pipeline/data/words.py", "ENGLISH = ", "ENGLISH = '' + ", {"language"}),
    ("pipeline/formats/preference.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"ingest", "preferences"}),
    ("pipeline/formats/chat.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"ingest", "chats", "preferences", "problems"}),
    ("pipeline/formats/compared.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"ingest", "preferences", *EXAMS}),
    ("pipeline/evaluation/compared.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"preferences", *EXAMS}),
    (
        "model/tokens/template.py",
        "CHAT_TEMPLATE = (",
        "CHAT_TEMPLATE = '' + (",
        CHATTING,
    ),
    ("pipeline/data/repairs.py", "fix_encoding=True", "fix_encoding=False", {"clean"}),
    ("pipeline/kernels/repeats.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"clean"}),
    ("pipeline/kernels/minhash.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"dedup"}),
    ("pipeline/data/shingles.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"dedup"}),
    ("pipeline/kernels/fasttext.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"language"}),
    ("pipeline/data/datacard.py", "def write_datacard", "EXTRA = 1\n\n\ndef write_datacard", {"shard"}),
    ("pipeline/data/screen.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"chats", "preferences", "problems"}),
    ("pipeline/data/documents.py", "EXCERPT = ", "EXCERPT = 1 + ", {*DOCUMENT_STAGES, "sample"}),
    ("pipeline/data/counted.py", "SAMPLES = 20", "SAMPLES = 21", {*DOCUMENT_STAGES, "sample", *TUNING}),
    # tokens
    ("pipeline/kernels/bpe.py", "_ZERO = np.int64(0)", "_ZERO = np.int64(1)", {"tokenizer"}),
    ("pipeline/tokens/encode.py", "2 << 20", "1 << 20", {"encode"}),
    ("pipeline/tokens/sequences.py", "[:400]", "[:300]", TUNING),
    ("pipeline/tokens/pairs.py", "room // 2", "room // 3", {"dpo"}),
    ("pipeline/tokens/chats.py", "_is_target(m)", "_is_target(m) or True", {"sft"}),
    # from a section to a worker's spec
    ("tasks/training.py", "hasattr(cfg, f.name)", 'hasattr(cfg, f.name) and f.name != "seed"', TRAINING),
    ("tasks/tuning.py", "max_tokens=cfg.seq_len", "max_tokens=cfg.seq_len // 2", TUNING),
    ("tasks/sft.py", "base.path, data", "base.path, out", {"sft"}),
    ("tasks/pretrain.py", "init=init", "init=None", {"pretrain"}),
    # models
    ("model/objectives/preference.py", "margin, smooth = spec.beta", "margin, smooth = 2 * spec.beta", {"dpo"}),
    ("model/training/reference.py", "allow_pickle=False", "allow_pickle=bool(0)", {"reward", "dpo"}),
    ("model/objectives/pairs.py", "2 * known + 1", "1 + 2 * known", {"reward", "dpo"}),
    ("model/objectives/reward.py", "0.5 * (chosen", "0.4 * (chosen", {"reward"}),
    ("model/reward.py", "together=2", "together=1", {"reward"}),
    ("model/sample.py", "SHARD = 16", "SHARD = 8", {"sample"}),
    ("model/network/reward.py", "hidden @ self.score", "2 * hidden @ self.score", {"reward", "sample", "rl"}),
    ("pipeline/sampling/pairs.py", "one.score)", "one.score + 1)", {"sample"}),
    ("pipeline/sampling/disturbed.py", "_AROUND = 3", "_AROUND = 4", {"sample"}),
    ("pipeline/formats/kto.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"ingest", "preferences"}),
    ("pipeline/pages/report/preferences.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"report"}),
    ("pipeline/tokens/ranked.py", "room // 2", "room // 3", {"reward"}),
    ("model/objectives/distill.py", "* temperature**2", "* temperature", {"sft"}),
    ("model/objectives/answers.py", "sums * text[0]", "sums + text[0]", {"sft"}),
    ("model/tokens/mixture.py", "_PARTS = 1 << 20", "_PARTS = 1 << 21", {"sft"}),
    ("model/training/mixed.py", "TEXT_SLOTS = 1 << 20", "TEXT_SLOTS = 1 << 21", {"sft"}),
    ("pipeline/tokens/tags.py", "begin < tag_end", "begin <= tag_end", {"sft"}),
    ("model/tokens/reply.py", "def parse_reply", "EXTRA = 1\n\n\ndef parse_reply", CHATTING),
    ("model/tokens/foreign.py", "halving", "bisection", set()),
    ("model/tokens/foreign.py", "CLOSE = ", "CLOSE = '' + ", CHATTING),
    ("model/tokens/imported.py", "_TEXTS = ", "_TEXTS = () + ", {"tokenizer"}),
    ("model/dpo.py", "together=2", "together=1", {"dpo"}),
    ("model/specs/dpo.py", "self.beta > 0", "self.beta > 1", {"dpo"}),
    ("model/network/lora.py", "self.lora_A(input)", "self.lora_A(2 * input)", TUNED),
    ("model/training/optim.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", TRAINING),
    ("model/training/loop.py", "SKIP_LIMIT = 10", "SKIP_LIMIT = 11", TRAINING),
    ("model/network/transformer.py", "class Transformer", "EXTRA = 1\n\n\nclass Transformer", ALL_MODELS),
    (
        "model/generation/judge.py",
        "import",
        "import sys as _s\nimport",
        {"reward", "sample", "rl", "evaluate", "quantize"},
    ),
    # reinforcement learning
    ("model/rl.py", "1 << 31", "1 << 30", {"rl"}),
    ("model/objectives/policy.py", "SPREAD = 1e-4", "SPREAD = 1e-3", {"rl"}),
    ("model/rewards/functions.py", "MODEL = ", "MODEL = '' + ", {"rl"}),
    ("model/training/rl_loop.py", "SHOWN = 2", "SHOWN = 3", {"rl"}),
    ("pipeline/config/rl.py", "how hard made problems are", "how hard problems are", set()),
    ("pipeline/formats/problem.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"problems"}),
    ("pipeline/problems/generators.py", "_HELD_OUT = 8", "_HELD_OUT = 9", {"ingest", "chats", "problems"}),
    ("model/generation/forest.py", "ROOM = 768", "ROOM = 512", {"evaluate", "quantize"}),
    ("pipeline/evaluation/standard/prompts.py", "SHOT_SEED = 1234", "SHOT_SEED = 1235", {"evaluate"}),
    ("pipeline/pages/report/tax.py", "\ndef ", "\nEXTRA = 1\n\n\ndef ", {"report"}),
    ("storage/champions.py", "import", "import sys as _s\nimport", set()),
    ("tasks/running/gate.py", "_ROUNDING = 1e-9", "_ROUNDING = 1e-8", set()),
    ("model/quantized/linear.py", "/ 127", "/ 128", {"evaluate", "quantize"}),
    ("model/quantized/rounding.py", "DAMP = 0.01", "DAMP = 0.02", {"quantize"}),
    ("model/llamacpp/run.py", "BATCH = 512", "BATCH = 256", {"quantize"}),
    ("pipeline/release/gguf_export.py", '"attn_norm"', '"attn_norms"', {"export", "quantize"}),
    ("pipeline/release/card.py", "## Limits", "## Limit", {"export"}),
    ("pipeline/release/weights.py", "0x7FFF", "0x7FFE", {"export", "quantize"}),
    # words about the code
    ("model/network/transformer.py", '"""', '"""Said in other words. ', set()),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def codes(root):
    return {name: fingerprint((s.fn.__module__, *s.workers), root, PACKAGES, NEVER) for name, s in STAGES.items()}


@pytest.mark.parametrize("path, old, new, stages", EDITS, ids=[f"{e[0]}: {e[1].strip()}" for e in EDITS])
def test_an_edit_costs_the_stages_whose_bytes_it_decides(copy, path, old, new, stages):
    before, file = codes(copy), copy / path
    text = file.read_text(encoding="utf-8")
    assert old in text, "the edit does not fit the code any more"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    try:
        after = codes(copy)
    finally:
        file.write_text(text, encoding="utf-8")
    assert {name for name in before if before[name] != after[name]} == stages


SOURCE = '''
"""A docstring."""
from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NAMES = ("a", "é", "\\U0001fae8")  # a comment


class Point:
    """Words."""

    x: int = 0
    """More words."""


def area(p: Point, *, scale: float = 1.0, **more: int) -> float:
    """Words."""
    found: list[int] = []
    match p:
        case Point(x=0):
            pass
        case _:
            found.append(f"{p.x!r:>{4}} and {scale=}" "tail")
    return [y := 1, *(z async for z in more)] if found else 1_000 / 2.5e-3j
'''


def test_the_fingerprint_is_the_same_under_every_python_and_for_every_formatting(tmp_path):
    def of(text, python=None):
        (tmp_path / "pkg").mkdir(exist_ok=True)
        (tmp_path / "pkg" / "mod.py").write_text(text, encoding="utf-8")
        if python is None:
            return fingerprint(("pkg.mod",), tmp_path, frozenset({"pkg"}), frozenset())["pkg/mod.py"]
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from storage import code;"
            f"found = code.fingerprint(('pkg.mod',), Path({str(tmp_path)!r}), frozenset({{'pkg'}}), frozenset());"
            "print(found['pkg/mod.py'])"
        )
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    known = of(SOURCE)
    assert known == "3ef30dfe955322f0", (
        "another Python version gives another form, or the form was changed: all stages miss"
    )
    others = [path for v in range(11, 15) if (path := shutil.which(f"python3.{v}"))]
    working = [path for path in others if subprocess.run([path, "--version"], capture_output=True).returncode == 0]
    assert {of(SOURCE, python) for python in [sys.executable, *working]} == {known}
    same = SOURCE.replace("# a comment", "# another").replace(
        '("a", "é", "\\\\U0001fae8")', "(\n 'a',\n 'é',\n '\\\\U0001fae8',\n)"
    )
    same = (
        same.replace("Words.", "Other words.")
        .replace("p: Point", "p: 'Point | None'")
        .replace("list[int]", "list[str]")
    )
    assert same != SOURCE and of(same) == known
    for old, new in (
        ("x: int = 0", "x: int = 1"),
        ("scale=}", "scale}"),
        ("case _:", "case None:"),
        ('"tail"', '"tale"'),
    ):
        assert old in SOURCE and of(SOURCE.replace(old, new)) != known


def test_what_lies_beside_a_module_and_what_its_packages_run_belong_to_it(tmp_path):
    folder = tmp_path / "pkg" / "page"
    folder.mkdir(parents=True)
    (folder / "page.py").write_text("X = 1")
    (folder / "page.html.j2").write_text("<p>")

    def of():
        return fingerprint(("pkg.page.page",), tmp_path, frozenset({"pkg"}), frozenset())

    before = of()
    assert set(before) == {"pkg/page/page.py", "pkg/page/page.html.j2"}
    (folder / "page.html.j2").write_text("<b>")
    assert of() != before
    (tmp_path / "pkg" / "__init__.py").write_text("Y = 2")
    assert "pkg/__init__.py" in of()
