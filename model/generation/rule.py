"""What an answer must be, token by token: the face of grammars for whoever generates."""

from __future__ import annotations

from typing import Protocol

import numpy as np

FORBIDDEN = -1e30
"""The logit of a token that must not come: no number that penalties or a temperature could make one that is none."""


class Rule(Protocol):
    """The state of one answer."""

    def allowed(self) -> np.ndarray:
        """Which tokens may come next, bool [vocab]; one at least."""
        ...

    def take(self, token: int) -> None:
        """This one came."""
        ...
