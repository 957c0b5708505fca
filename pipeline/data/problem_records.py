"""Problems for reinforcement learning: those of the generators and those of sources, told apart into what is trained on
and what is held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.data.records import Kind, Losses, read_records
from pipeline.formats.problem import as_problem
from pipeline.formats.record import Record
from pipeline.problems.generators import LANGS, made
from pipeline.problems.settings import ProblemSettings
from pipeline.sources import Source

KIND = Kind("problem", as_problem, {})
TRAIN, HELD = "train", "val"


def read_problems(
    cfg: ProblemSettings,
    sources: Sequence[Source],
    *,
    max_bad_share: float = 0.1,
    ignored: Sequence[str] = (),
    losses: Losses | None = None,
) -> Iterator[Record]:
    """``{"messages", "answer", "lang", "task", "split"}`` of the generated problems, then of every usable record.

    Of a source that many records of it are held out as ``cfg.heldout`` says, those whose question's hash is smallest,
    so that equal questions lie on one side.
    """
    losses = losses or Losses()
    yield from generated(cfg, losses)
    yield from split(read_records(KIND, sources, max_bad_share, ignored, losses), cfg)


def generated(cfg: ProblemSettings, losses: Losses) -> Iterator[Record]:
    """The problems of every task that ``cfg.tasks`` names, languages and levels by turns."""
    for name in cfg.tasks:
        if name.startswith("reasoning_gym:"):
            from pipeline.problems.gym import gym_problems

            rows = gym_problems(name, cfg)
        else:
            rows = _made(name, cfg)
        for line, row in enumerate(rows, 1):
            losses.seen += 1
            yield {**row, "source": name, "path": name, "line": line}


def _made(task: str, cfg: ProblemSettings) -> Iterator[Record]:
    kinds = [(lang, level) for lang in LANGS for level in cfg.levels]
    for held, count in ((False, cfg.problems), (True, cfg.heldout)):
        for lang, level in kinds:
            for number, one in enumerate(made(task, lang, level, -(-count // len(kinds)), cfg.seed, held)):
                yield {
                    "messages": [{"role": "user", "content": one.question}],
                    "answer": one.answer,
                    "lang": lang,
                    "task": task,
                    "split": HELD if held else TRAIN,
                    "id": f"{task}-{lang}-{level}-{HELD if held else TRAIN}-{number}",
                }


def split(records: Iterator[Record], cfg: ProblemSettings) -> Iterator[Record]:
    """Records of sources with their ``split`` and a ``task`` (the source's name where they bring none)."""
    from pipeline.problems.generators import held_out

    held = 0
    for record in records:
        asked = "\n".join(message["content"] for message in record["messages"])
        own = held < cfg.heldout and held_out(asked)
        held += own
        name = record["task"] or record["source"]
        yield {
            **record,
            "task": name,
            "id": record["id"] or f"{record['path']}-{record['line']}",
            "split": HELD if own else TRAIN,
        }
