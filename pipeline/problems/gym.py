"""Problems of reasoning-gym (an optional package): its generators, and what its verifiers need to judge an answer."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator

from pipeline.formats.record import Record
from pipeline.problems.settings import ProblemSettings

PREFIX = "reasoning_gym:"
INSTALL = 'install it with: pip install "full-pipeline[reasoning-gym]"'


def check(name: str) -> None:
    """Raises ValueError when the package is absent or has no dataset of this name."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError(f"{name} needs the package reasoning-gym, which is not installed; {INSTALL}")
    import reasoning_gym.factory as factory  # pyright: ignore[reportMissingImports] - an optional package

    dataset, known = name.removeprefix(PREFIX), sorted(factory.DATASETS)
    if dataset not in known:
        raise ValueError(f"{name}: reasoning-gym has no dataset {dataset}; it has {', '.join(known)}")


def gym_problems(name: str, cfg: ProblemSettings) -> Iterator[Record]:
    """The problems of one dataset; the held-out ones are made with the next seed, and none of them is trained on."""
    import reasoning_gym  # pyright: ignore[reportMissingImports] - an optional package

    dataset = name.removeprefix(PREFIX)
    held = reasoning_gym.create_dataset(dataset, size=max(1, cfg.heldout), seed=cfg.seed + 1)
    kept = {entry["question"] for entry in held}
    train = reasoning_gym.create_dataset(dataset, size=cfg.problems, seed=cfg.seed)
    for split, entries in (("train", (e for e in train if e["question"] not in kept)), ("val", held)):
        for number, entry in enumerate(entries):
            plain = json.loads(json.dumps(dict(entry), default=str))
            yield {
                "messages": [{"role": "user", "content": entry["question"]}],
                "answer": str(entry["answer"]),
                "lang": "en",
                "task": name,
                "split": split,
                "id": f"{dataset}-{split}-{number}",
                "gym": {"dataset": dataset, "entry": plain},
            }
