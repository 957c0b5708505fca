"""``pipeline quantize`` and ``pipeline prune``: smaller forms of any model, each with what it costs.

They write a folder and no artifact; for forms that are cached and tracked, set ``quantize.forms`` of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flows.inspect import find_model, find_record, store
from pipeline.config.release import QuantizeSection
from pipeline.config.resources import Resources
from storage.errors import Refused
from storage.files import write_json
from storage.lineage import LineageRecord, ancestry, parse


def quantize(args: argparse.Namespace) -> int:
    """Write the forms of the parsed command line; exit code."""
    from pipeline.release.forms import check_forms
    from tasks.quantize import make_forms

    if problems := check_forms(args.to):
        raise Refused("--to: " + "; ".join(problems))
    model, texts = _given(args)
    out = Path(args.out or f"{Path(args.model).name}-forms").resolve()
    method = args.method or ("gptq" if texts["tokens"] or texts["text"] else "search")
    cfg = QuantizeSection(forms=args.to, group=args.group, method=method)
    make_forms(cfg, model, texts, on=Resources(), out=out, report=_Lines())
    return _show(args, out)


def prune(args: argparse.Namespace) -> int:
    """Write the smaller model of the parsed command line and what it costs; exit code."""
    from tasks.running.launch import launch

    model, texts = _given(args)
    out, on, lines = Path(args.out).resolve(), Resources(), _Lines()
    if (out / "model.safetensors").exists() and out.samefile(model):
        raise Refused(f"--out {args.out} is the model itself")
    same = {"model": str(model), "out": str(out), **texts}
    options = {"layers": args.layers, "heads": args.heads, "channels": args.ffn, "pruned": str(out)}
    usual = {"calibration_tokens": 16_384, "seq_len": 0}
    found = launch("model.prune", {**same, **options, **usual}, out, on, lines.training, single=True)
    cfg = QuantizeSection()
    settings = cfg.model_dump(
        include={"bits_tokens", "kl_tokens", "seq_len", "speed_tokens", "max_new_tokens", "batch"}
    )
    size = (out / "model.safetensors").stat().st_size
    spec = {**same, "forms": [{"name": "pruned", "path": str(out), "bytes": size}], "settings": settings}
    launch("model.measure", spec, out, on, lines.training, single=True)
    if not args.json:
        fewer = 1 - found["parameters"] / found["parameters_before"]
        print(
            f"{found['parameters']:,.0f} of {found['parameters_before']:,.0f} parameters ({fewer:.0%} fewer); loss"
            f" {found['loss_before']:.4f} → {found['loss']:.4f} nats a token on the texts that it was measured by"
        )
    return _show(args, out)


class _Lines:
    """What a stage reports, as lines on stderr."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def training(self, metrics: dict[str, Any]) -> None:
        pass


def _given(args: argparse.Namespace) -> tuple[Path, dict[str, str | None]]:
    """The model's directory, and the texts that it is measured by. Raises Refused in words."""
    try:
        model = find_model(args.model, args.force).resolve()
        scores = find_record(args.scores) if args.scores else None
    except LookupError as error:
        raise Refused(str(error.args[0])) from None
    if args.text and not Path(args.text).is_file():
        raise Refused(f"--text {args.text}  no such file")
    tokens = None if args.text else _tokens(model)
    exams = store().directory(scores["stage"], scores["key"]) if scores else None
    if tokens is None and not args.text:
        print("no text to measure by: bits per byte and KL are left out (--text FILE)", file=sys.stderr)
    return model, {
        "tokens": str(tokens) if tokens else None,
        "text": os.path.abspath(args.text) if args.text else None,
        "exams": str(exams) if exams else None,
    }


def _tokens(model: Path) -> Path | None:
    """The token dataset that a model of the store was trained on; None for one that lies elsewhere."""
    try:
        told = json.loads((model / "lineage.json").read_text("utf-8"))
        record: LineageRecord = parse(json.dumps(told), told["stage"], told["key"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    for one in reversed(ancestry(store().record, (record["stage"], record["key"]))):
        if one.get("kind") == "tokens" and store().examine(one["stage"], one["key"]).state != "damaged":
            return store().directory(one["stage"], one["key"])
    return None


def _show(args: argparse.Namespace, out: Path) -> int:
    from pipeline.release.card import forms_table

    costs = json.loads((out / "costs.json").read_text("utf-8"))
    write_json(out / "costs.json", costs)
    if args.json:
        print(json.dumps({"out": str(out), "costs": costs}, ensure_ascii=False))
    else:
        print("\n".join([*forms_table(costs), f"written to {out}"]))
    return 0
