"""How long an exam takes here and in lm-evaluation-harness: the same model, the same requests, one core.

    python benchmarks/exam_speed.py MODEL EXAM… [--shots 5] [--limit 20] [--rounds 2] [--window 2048]

MODEL is a model folder (an artifact or an export), EXAM what `evaluate.exams` takes and compares choices by likelihood.
With --window the model is one of the 26M shape (512 wide, 8 layers) with random weights, that window, and MODEL's
tokenizer. Both sides encode and score the same contexts and choices in fp32, turn by turn; processor seconds, loading
is not counted. The harness keeps one-token choices of a question together (its logits cache) and gets the batch size of
--batch. The largest difference of a log-likelihood is printed beside the seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model.generation.scorer import Scorer
from model.generation.standard import ask
from pipeline.evaluation.standard.named import recognised
from pipeline.evaluation.standard.prompts import read_standard


def harness(model: str, batch: int):
    """A function from (context, continuation) pairs to log-likelihoods, by the harness."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    language_model = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=batch)

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        return [value for value, _ in language_model.loglikelihood(requests, disable_tqdm=True)]

    return score


def random_model(like: str, window: int) -> str:
    """A folder with a model of the 26M shape, and with the tokenizer of another."""
    import json
    import tempfile

    from model.network.transformer import Transformer, initialize
    from model.network.weights import save_model
    from model.specs.shape import ModelConfig

    vocabulary = json.loads((Path(like) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    shape = {"dim": 512, "layers": 8, "heads": 8, "kv_heads": 2, "ffn": 1408, "max_seq_len": window}
    model = Transformer(ModelConfig(vocab_size=vocabulary, **shape))
    initialize(model, 0)
    for block in model.model.layers:  # they start as the identity
        torch.nn.init.normal_(block.self_attn.o_proj.weight, std=0.02)
        torch.nn.init.normal_(block.mlp.down_proj.weight, std=0.02)
    folder = tempfile.mkdtemp(prefix="exam-speed-")
    save_model(model, folder, like)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("exams", nargs="+")
    parser.add_argument("--shots", type=int, default=-1)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--subjects", type=int, default=0, help="ask the first so many subjects alone")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = random_model(args.model, args.window) if args.window else args.model
    scorer, theirs = Scorer(model, "cpu", "fp32", 32, lambda done: None), harness(model, args.batch)
    known, _, wrong = recognised(args.exams, args.shots)
    if wrong:
        raise SystemExit("\n".join(wrong))
    for source in known:
        exam = read_standard(source, source.form, None if args.shots < 0 else args.shots, args.limit)
        subjects = sorted({item["subject"] for item in exam["items"]})[: args.subjects or None]
        items = [item for item in exam["items"] if item["subject"] in subjects]
        pairs = [(item["context"], f" {choice}") for item in items for choice in item["choices"]]
        for turn in range(args.rounds):
            begun = time.process_time()
            said = ask(scorer, items)
            middle = time.process_time()
            values = theirs(pairs)
            end = time.process_time()
            own = [value for one in said for value in one["log_likelihood"] or []]
            worst = max(abs(a - b) for a, b in zip(own, values, strict=True))
            print(
                f"{source.form}, {items[0]['shots']} examples, round {turn + 1}: {len(items)} questions, {len(pairs)}"
                f" requests; here {middle - begun:.1f} s, harness {end - middle:.1f} s, ratio"
                f" {(end - middle) / (middle - begun):.2f}; largest difference {worst:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
