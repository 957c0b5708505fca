"""Rows of conversations whose tags weigh more, and rows of ordinary text among them (replay), for fine-tuning.

Replay keeps what pretraining taught: a fixed share of the rows comes from the pretraining text. Position in the data
stays one integer, the number of rows read so far; how many of them were text follows from it alone. So each kind is
read in a seeded order of its own without repetition, and any number of ranks resumes anywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.tokens.rows import Order, Packed, Rows, Split, Windows

TAG = 2
"""In the mask of a conversation: a target that belongs to a tag; 1 is any other target."""
_PARTS = 1 << 20
"""The share of replay is rounded to so many parts, so that counting rows is exact."""


class Weighed(Packed):
    """Packed conversations in which a target marked as :data:`TAG` weighs ``tag_weight`` and any other 1.

    The loss of a batch is divided by the sum of the weights, or with ``by_targets`` by the number of targets.
    """

    def __init__(self, split: Split, seq_len: int, tag_weight: float, by_targets: bool) -> None:
        self.table = np.array([0.0, 1.0, tag_weight])
        self.divisor = np.array([0.0, 1.0, 1.0 if by_targets else tag_weight])
        super().__init__(split, seq_len)
        marks = [[self._marks(s) for s in row] for row in self.members]
        self.units = np.array([sum(float(self.divisor[m].sum()) for m in row) for row in marks])
        self.all_targets = 0 if split.mask is None else int(np.count_nonzero(self.table[np.asarray(split.mask)]))

    def _marks(self, sequence: int) -> NDArray:
        return super()._piece(sequence)[1]

    def _piece(self, sequence: int) -> tuple[NDArray, NDArray]:
        tokens, marks = super()._piece(sequence)
        return tokens, self.table[marks]


class Mixture(Weighed):
    """Packed conversations, and among their rows windows of ``text``: ``share`` of all rows (above 0, below 1). Every
    slot of these is a target that weighs ``weight``.

    Row numbers below ``conversations`` are conversations, the others text. ``rows`` are those of one pass over the
    conversations, text included. Raises ValueError when there is no text.
    """

    def __init__(
        self, split: Split, seq_len: int, tag_weight: float, by_targets: bool, text: Windows, share: float,
        weight: float,
    ) -> None:  # fmt: skip
        super().__init__(split, seq_len, tag_weight, by_targets)
        if not text.rows:
            raise ValueError(f"sft.replay = {share} needs pretraining text, and there is none in its training split")
        self.text, self.weight, self.conversations = text, weight, self.rows
        self.parts = min(_PARTS - 1, max(1, round(share * _PARTS)))
        self.rows = -(-self.conversations * _PARTS // (_PARTS - self.parts))
        self.units = np.concatenate([self.units, text.units * weight])
        self.filled = np.concatenate([self.filled, text.filled])

    def of_text(self, numbers: NDArray) -> NDArray:
        """Which of the row numbers are text (bool)."""
        return numbers >= self.conversations

    def read(self, numbers: NDArray) -> Rows:
        """The rows with these numbers; a negative number gives an empty row."""
        of_text = self.of_text(numbers)
        out = super().read(np.where(of_text, -1, numbers))
        if of_text.any():
            text = self.text.read(numbers[of_text] - self.conversations)
            text.weight *= np.float32(self.weight)
            for name, values in vars(text).items():
                getattr(out, name)[of_text] = values
        return out


class MixedOrder:
    """Row numbers of a :class:`Mixture` by position: both kinds evenly among each other, each in its own seeded order;
    within a batch conversations come first, so that ranks get as many of each."""

    def __init__(self, mixture: Mixture, seed: int) -> None:
        self.parts, self.first = mixture.parts, mixture.conversations
        self.chats, self.text = Order(mixture.conversations, seed), Order(mixture.text.rows, seed)

    def text_before(self, position: int) -> int:
        """Rows of text among the first ``position`` rows."""
        return position * self.parts // _PARTS

    def __call__(self, begin: int, end: int) -> NDArray:
        """Numbers of the rows at positions ``begin`` to ``end`` (exclusive), int64."""
        before, after = self.text_before(begin), self.text_before(end)
        chats, text = self.chats(begin - before, end - after), self.text(before, after)
        return np.concatenate([chats, text + self.first])
