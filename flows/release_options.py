"""The arguments of ``pipeline quantize`` and ``pipeline prune``."""

from __future__ import annotations

from flows.grammar import AddCommand, Completer, completed_by

_FORMS = "int8, int4, gguf:q8_0, gguf:q4_k_m, gguf:f16, … (every type: `pipeline config tiny --explain`)"


def releasing(command: AddCommand, presets: Completer) -> None:
    """Adds the two commands; ``command(name, text, examples)`` makes one."""
    quantized = command(
        "quantize",
        "write int8, int4 and GGUF forms of a model, each with what it costs",
        "  pipeline quantize tiny --to int8 gguf:q4_k_m\n"
        "  pipeline quantize my-model/ --to int4 --text sample.txt --out forms/",
    )
    pruned = command(
        "prune",
        "leave out the layers, heads and channels of a model that cost least, and say what it costs",
        "  pipeline prune tiny --layers 1 --out smaller/\n"
        "  pipeline prune tiny --layers 1 --heads 2 --ffn 64 --out smaller/\n"
        "  pipeline run tiny pretrain.init=smaller/ tokenizer.existing=smaller/ pretrain.steps=200   recovers it",
    )
    for sub in (quantized, pruned):
        completed_by(
            sub.add_argument("model", help="a preset's name, a run's id, stage/key, or a model directory"), presets
        )
        sub.add_argument(
            "--text", metavar="FILE", help="UTF-8 text to measure and calibrate by (default: the run's own)"
        )
        sub.add_argument("--scores", metavar="REF", help="an evaluate artifact, whose questions are asked again")
        sub.add_argument("--refresh", action="store_true", help="make it again although it is cached")
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        sub.add_argument("--force", action="store_true", help="also when the model was withdrawn")
    quantized.add_argument("--to", nargs="+", required=True, metavar="FORM", help=_FORMS)
    quantized.add_argument("--out", metavar="DIR", help="copy it to a folder (it is kept in the store either way)")
    quantized.add_argument(
        "--group", type=int, default=32, choices=(32, 64, 128), help="int4: inputs that share a scale"
    )
    quantized.add_argument(
        "--method", choices=("nearest", "search", "gptq"), help="int4 (default gptq where texts are)"
    )
    pruned.add_argument("--layers", type=int, default=0, metavar="N", help="layers to leave out")
    pruned.add_argument(
        "--heads", type=int, default=0, metavar="N", help="query heads of each layer, with their key heads"
    )
    pruned.add_argument("--ffn", type=int, default=0, metavar="N", help="feed-forward channels of each layer")
    pruned.add_argument("--out", metavar="DIR", help="copy it to a folder (it is kept in the store either way)")
