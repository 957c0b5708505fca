"""Which model of a preset is its champion: every decision ever made, one JSON line each, in the store's journal
``champions/<preset>.jsonl``; of a shared store that lies in the bucket, so that all its machines have one champion.

The journal is the truth. MLflow's alias ``champion`` follows it and may lag behind an outage
(tasks/tracking/champion.py).
:func:`champion` gives the champion's directory and needs nothing but the store: call it again to learn whether the
champion has changed. A model becomes champion by a run whose gate held (``evaluate.gate``) or by ``pipeline promote``;
``pipeline promote --rollback`` goes back to the one before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from storage.errors import Refused
from storage.journal import Journal
from storage.places import home
from storage.store import Store, open_store

FOLDER = "champions"
_NAME = re.compile(r"[\w.\- ]{1,200}")


class ModelRef(TypedDict):
    """A model artifact."""

    stage: str
    key: str
    digest: str


class Condition(TypedDict):
    """A condition of a gate as it was written, whether it held, and by what numbers."""

    text: str
    held: bool
    why: str


class Decision(TypedDict):
    """What was decided about a model. ``moved``: it is the champion from then on; ``before``: the champion until then;
    ``scores``: its own, under flat names without the model's, to which later models are compared; ``evaluated``: key of
    the evaluate artifact they are from; ``created``: UTC."""

    preset: str
    action: Literal["gate", "promote", "rollback"]
    model: ModelRef
    moved: bool
    before: ModelRef | None
    conditions: list[Condition]
    scores: dict[str, float]
    evaluated: str
    run: str
    created: str


class NoChampion(Refused, LookupError):
    """A preset has no champion, or one that cannot be used: the text says which and what helps."""


class Champions:
    """The decisions about the models of every preset in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def history(self, preset: str) -> list[Decision]:
        """Every decision about a preset's models, oldest first; a line that is none is left out."""
        lines = self._journal(preset).read().split("\n")
        return [decision for line in lines if (decision := _parse(line))]

    def line(self, preset: str) -> list[Decision]:
        """The decisions that made the present champion and those before it, which a rollback goes back through."""
        line: list[Decision] = []
        for decision in self.history(preset):
            if decision["moved"] and decision["action"] != "rollback":
                line.append(decision)
            elif decision["moved"] and line:
                line.pop()
        return line

    def current(self, preset: str) -> Decision | None:
        """The decision that made the present champion; None when there is none."""
        line = self.line(preset)
        return line[-1] if line else None

    def add(self, decision: Decision) -> None:
        """Write a decision down, durably."""
        self._journal(decision["preset"]).append(json.dumps(decision, ensure_ascii=False, sort_keys=True))

    def presets(self) -> list[str]:
        """Presets about whose models something was decided."""
        return [name for name in self.store.journals(FOLDER) if _is_name(name)]

    def kept(self) -> Iterator[tuple[str, str]]:
        """Stage and key of every model that is a champion or that a rollback can lead to: gc leaves them."""
        for preset in self.presets():
            for decision in self.line(preset):
                yield decision["model"]["stage"], decision["model"]["key"]

    def _journal(self, preset: str) -> Journal:
        if not _is_name(preset):
            raise NoChampion(f"{preset!r} cannot be the name of a preset")
        return self.store.journal(FOLDER, preset)


def _is_name(preset: str) -> bool:
    return bool(_NAME.fullmatch(preset)) and not preset.startswith(".")


def champion(preset: str, store: Store | None = None) -> Path:
    """The directory of a preset's champion, whole and not withdrawn, brought here from a shared store if need be.

    ``preset`` is a preset's name or the path of its file, ``store`` the one below ``PIPELINE_HOME`` by default. Raises
    :class:`NoChampion`.
    """
    place, name = store or open_store(home() / "store"), Path(preset).stem
    decision = Champions(place).current(name)
    if decision is None:
        raise NoChampion(
            f"{name}  has no champion yet; `pipeline run {name}` makes one, or `pipeline promote` names it"
        )
    model = decision["model"]
    look = place.examine(model["stage"], model["key"])
    if look.state == "there":
        place.ready(model["stage"], model["key"])
        look = place.examine(model["stage"], model["key"])
    if look.state != "here" or look.artifact is None:
        why = look.why or f"{model['stage']}/{model['key'][:12]} is no longer in {place.root}"
        raise NoChampion(f"{name}  its champion cannot be used: {why}; `pipeline promote {name} --rollback` goes back")
    return look.artifact.path


def _parse(line: str) -> Decision | None:
    try:
        loaded: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(loaded, dict):
        return None
    found = cast(dict[str, Any], loaded)
    model = cast(dict[str, Any], found.get("model")) if isinstance(found.get("model"), dict) else {}
    named = all(isinstance(model.get(name), str) for name in ModelRef.__annotations__)
    whole = named and found.keys() >= Decision.__annotations__.keys() and isinstance(found["scores"], dict)
    return cast(Decision, found) if whole else None
