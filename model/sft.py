"""Worker of the sft stage: ``python -m model.sft --spec FILE`` (see :mod:`model.training.trainer`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.network.transformer import Transformer
from model.network.weights import load_model
from model.objectives.base import Objective
from model.objectives.distill import Distill
from model.objectives.next_token import NextToken
from model.running.setup import Choices
from model.specs.sft import SftSpec
from model.tokens.rows import Packed, Split, fingerprint, read_meta
from model.tokens.vocabulary import check_tokens
from model.training.loop import Data
from model.training.trainer import prepare, work
from model.training.tuner import Tuner


class SftTrainer(Tuner[SftSpec]):
    """Next-token prediction at the assistant's tokens, alone or with a teacher."""

    SPEC = SftSpec

    def rows(self, split: Split, whole: bool) -> Packed:
        """Whole conversations packed into rows."""
        return Packed(split, self.spec.seq_len)

    def objective(self, model: Transformer, choices: Choices, data: Data) -> Objective:
        """Cross-entropy, and the divergence from a teacher that computes as chosen."""
        if not self.spec.distill.teacher:
            return NextToken(model, self.spec)
        teacher = load_teacher(self.spec)
        prepare(teacher, self.spec, choices)
        return Distill(model, self.spec, teacher.to(device=self.ranks.device, dtype=teacher.compute_dtype))

    def fingerprints(self) -> dict[str, Any]:
        """As for every run, and the teacher's content."""
        teacher = self.spec.distill.teacher
        return super().fingerprints() | {"teacher": fingerprint(teacher) if teacher else None}


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
