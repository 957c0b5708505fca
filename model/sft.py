"""Worker of the sft stage: ``python -m model.sft --spec FILE`` (see :mod:`model.training.trainer`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.network.transformer import Transformer
from model.network.weights import load_model
from model.objectives.answers import Answers
from model.objectives.base import Objective
from model.objectives.distill import Distill
from model.running.setup import Choices
from model.specs.sft import SftSpec
from model.tokens.mixture import Mixture, Weighed
from model.tokens.rows import Packed, Split, Windows, fingerprint, read_meta, read_split
from model.tokens.vocabulary import check_tokens
from model.training.loop import Data
from model.training.mixed import MixedData, MixedLoop
from model.training.trainer import prepare, work
from model.training.tuner import Tuner


class SftTrainer(Tuner[SftSpec]):
    """Next-token prediction at the assistant's tokens, alone or with a teacher, and at those of replayed text."""

    SPEC = SftSpec
    LOOP = MixedLoop

    def read_data(self) -> MixedData:
        """Conversations, and with replay the pretraining text. Raises ValueError when that is of another tokenizer."""
        spec, chats = self.spec, super().read_data()
        assert isinstance(chats.train, Packed) and isinstance(chats.val, Packed)
        if not spec.replay:
            return MixedData(chats.train, chats.val)
        check_text(spec)
        return MixedData(chats.train, chats.val, Windows(read_split(spec.replay_data, "val"), spec.seq_len, tail=True))

    def rows(self, split: Split, whole: bool) -> Packed:
        """Whole conversations packed into rows, and rows of text among those to train on."""
        spec = self.spec
        weights = (spec.tag_weight, spec.compat == "minimind")
        if whole or not spec.replay:
            return Weighed(split, spec.seq_len, *weights)
        text = Windows(read_split(spec.replay_data, "train"), spec.seq_len)
        return Mixture(split, spec.seq_len, *weights, text, spec.replay, spec.replay_weight)

    def objective(self, model: Transformer, choices: Choices, data: Data) -> Objective:
        """Cross-entropy, and the divergence from a teacher that computes as chosen."""
        if not self.spec.distill.teacher:
            return Answers(model, self.spec)
        teacher = load_teacher(self.spec)
        prepare(teacher, self.spec, choices)
        return Distill(model, self.spec, teacher.to(device=self.ranks.device, dtype=teacher.compute_dtype))

    def fingerprints(self) -> dict[str, Any]:
        """As for every run, and the contents of teacher and pretraining text."""
        teacher, text = self.spec.distill.teacher, self.spec.replay_data
        more = {"teacher": fingerprint(teacher) if teacher else None, "text": fingerprint(text) if text else None}
        return super().fingerprints() | more


def check_text(spec: SftSpec) -> None:
    """Raises ValueError when the text to replay is none, or is encoded with another tokenizer than the
    conversations."""
    text, chats = read_meta(spec.replay_data), read_meta(spec.data)
    if text["kind"] != "text":
        raise ValueError(f"{spec.replay_data}: holds {text['kind']} tokens, replay needs text")
    if text.get("tokenizer") != chats.get("tokenizer"):
        raise ValueError(
            f"{spec.replay_data}: encoded with another tokenizer than {spec.data}; replay needs one for both"
        )


def load_teacher(spec: SftSpec) -> Transformer:
    """The frozen teacher. Raises ValueError when its token ids are not the student's."""
    teacher, vocabulary = load_model(spec.distill.teacher), int(read_meta(spec.data)["vocab_size"])
    check_tokens(Path(spec.distill.teacher) / "tokenizer.json", Path(spec.tokenizer) / "tokenizer.json", "the teacher")
    if teacher.config.vocab_size < vocabulary:
        raise ValueError(
            f"{spec.distill.teacher}: the teacher knows {teacher.config.vocab_size} tokens, the tokenizer has"
            f" {vocabulary}; distillation needs one vocabulary: leave tokenizer.extend out"
        )
    return teacher.requires_grad_(False)


if __name__ == "__main__":
    work(SftTrainer)
