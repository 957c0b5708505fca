"""What a run is given from outside: text, chats, preferences and evaluation sets, resolved and hashed before anything
runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from pipeline.config.sample import SampleSection
from pipeline.config.tree import Config, ConfigError, examine
from pipeline.problems.settings import ProblemSettings
from pipeline.sampling.openai_judge import unanswered
from pipeline.sources import Source, SourceFile, resolve
from pipeline.sources.state import state_of
from pipeline.sources.state import unchanged as files_unchanged
from storage.digest import Manifest, digest_of, sha256_file, sha256_json
from storage.lineage import PLAIN, SourceEntry, SourceListing
from storage.store import Store
from storage.whole import read_manifest
from tasks.running.environment import lacking


@dataclass(frozen=True)
class SourceSet:
    """Sources of one kind as a stage's input: the digest covers names and contents, not where the files lie."""

    kind: str
    sources: tuple[Source, ...] = ()

    @property
    def digest(self) -> str:
        return sha256_json([[s.name, s.digest, *([s.form] if s.form else [])] for s in self.sources])

    def describe(self) -> list[SourceEntry]:
        """Name, digest, files and bytes of each source, for lineage."""
        return [
            {"name": s.name, "digest": s.digest, "files": len(s.files), "bytes": sum(f.bytes for f in s.files)}
            for s in self.sources
        ]

    def listings(self) -> list[SourceListing]:
        """Path, size and sha256 of every file of each source."""
        return [
            {
                "name": s.name,
                "digest": s.digest,
                "files": [{"path": f.relpath, "bytes": f.bytes, "sha256": f.sha256} for f in s.files],
            }
            for s in self.sources
        ]


def unchanged(*given: SourceSet | None) -> AbstractContextManager[None]:
    """Around reading the files of these sources whole: raises SourceChanged when one is not what was hashed."""
    return files_unchanged(file for sources in given if sources for source in sources.sources for file in source.files)


@dataclass(frozen=True)
class ProblemSet(SourceSet):
    """Problems of sources and those that are made: the digest covers what decides both."""

    settings: ProblemSettings = field(default_factory=ProblemSettings)

    @property
    def digest(self) -> str:
        return sha256_json([self.settings.json(), super().digest])

    def describe(self) -> list[SourceEntry]:
        """The tasks of which problems are made, as sources without files, before those of files."""
        made: list[SourceEntry] = [
            {"name": task, "digest": sha256_json([task, self.settings.json()]), "files": 0, "bytes": 0}
            for task in self.settings.tasks
        ]
        return made + super().describe()


@dataclass(frozen=True)
class Inputs:
    """Everything the flow reads from outside; what a config does not ask for is None, and its stages are left out.

    ``aligns``, ``ranks`` and ``samples`` say whether the preferences are for dpo, whether a reward model is trained on
    them, and whether the chat model makes some itself; ``scores`` and ``rewards`` whether the reward model judges those
    and the answers of rl; ``replays`` whether sft reads the pretraining tokens. ``unasked`` are the exams, where the
    chat model is asked in new words.
    """

    text: SourceSet | None
    chats: SourceSet | None
    preferences: SourceSet | None
    problems: ProblemSet | None
    exams: SourceSet | None
    standard: SourceSet | None
    against: SourceSet | None
    aligns: bool = False
    ranks: bool = False
    samples: bool = False
    scores: bool = False
    rewards: bool = False
    replays: bool = False
    unasked: SourceSet | None = None

    @property
    def guarded(self) -> SourceSet | None:
        """Everything that models are asked and that must not be trained on."""
        sets = [sources for sources in (self.exams, self.standard) if sources]
        return SourceSet("exam", tuple(s for own in sets for s in own.sources)) if sets else None


def asked(preset: str, overrides: list[str] | tuple[str, ...] = (), here: bool = False) -> tuple[Config, Inputs]:
    """The config of a preset with overrides, and what it names outside itself. Raises ConfigError with everything that
    is wrong with either: a wrong number does not hide a missing file. ``here``: also when this machine cannot train
    it."""
    config, problems = examine(preset, overrides)
    inputs = None
    if config is not None:
        problems = [*problems, *(undevised(config) if here else ())]
        try:
            inputs = given(config)
        except ConfigError as error:
            problems = [*problems, *error.problems]
    if problems or config is None or inputs is None:
        raise ConfigError(problems)
    return config, inputs


def given(config: Config) -> Inputs:
    """Resolve everything a config names outside itself, and look whether it is what it is named for. Raises ConfigError
    with all problems at once."""
    from pipeline.running.peek import peek

    problems: list[str] = []

    def gather(field: str, kind: str, find: Callable[[], list[Source]]) -> SourceSet | None:
        try:
            sources = find()
            if kind in ("chat", "preference", "problem", "exam"):
                problems.extend(f"{field}  {line}" for line in peek(sources, kind, config.evaluate.max_bad_records))
            return SourceSet(kind, tuple(sources))
        except (ValueError, OSError) as error:
            problems.extend(f"{field}  {line}" for line in str(error).splitlines())
            return None

    def named(section: str, kind: str, required: bool = False) -> SourceSet | None:
        names = list(getattr(config, section).sources)
        if kind == "exam" and not names and "teaching" in [*config.ingest.sources, *config.sft.sources]:
            names = ["teaching"]
        return gather(f"{section}.sources", kind, lambda: resolve(names, kind)) if names or required else None

    against, tried = config.dedup.against, named("rl", "problem")
    inputs = Inputs(
        text=named("ingest", "text", required=True),
        chats=named("sft", "chat"),
        preferences=named("dpo" if config.dpo.sources else "reward", "preference"),
        problems=ProblemSet("problem", tried.sources if tried else (), config.rl.settings())
        if config.rl.wanted
        else None,
        exams=None,
        standard=None,
        against=gather("dedup.against", "documents", lambda: [_documents(path) for path in against])
        if against
        else None,
        aligns=bool(config.dpo.sources),
        ranks=bool(config.reward.sources),
        samples=config.sample.answers > 0,
        scores=config.sample.judge == "reward",
        rewards="model" in config.rl.rewards,
        replays=config.sft.replay > 0,
    )
    own = named("evaluate", "exam")
    standard, others = _standard(config, problems)
    asked = [*(own.sources if own else ()), *others]
    inputs = replace(inputs, exams=SourceSet("exam", tuple(asked)) if asked else None, standard=standard)
    if config.sample.answers and config.sample.disturbed:
        inputs = replace(inputs, unasked=inputs.guarded)
    problems += [*_preferring(config), *_judging(config)]
    if config.rl.wanted and "model" in config.rl.rewards and not config.reward.sources:
        problems.append("rl.rewards  reward model needs the stage reward: give preferences in reward.sources")
    if config.rl.wanted and not config.sft.sources:
        problems.append("rl.tasks  problems are answered by a chat model: give sft.sources too, or set rl.tasks=[]")
    if not problems:
        problems = _misnamed(config, inputs)
    if problems:
        raise ConfigError(problems)
    return inputs


def _preferring(config: Config) -> list[str]:
    """What does not go together in the stages that learn from preferences or make some."""
    found, dpo, reward, sample = list[str](), config.dpo, config.reward, config.sample
    if not config.sft.sources:
        asked = {"dpo.sources": dpo.sources, "reward.sources": reward.sources, "sample.answers": sample.answers}
        found += [
            f"{name}  preferences are learnt by a chat model: give sft.sources too, or set {name}={type(value)()}"
            for name, value in asked.items()
            if value
        ]
    if dpo.sources and reward.sources and dpo.sources != reward.sources:
        found.append(
            "reward.sources  a run has one set of preferences: name the same sources as in dpo.sources, or leave one of"
            " the two empty"
        )
    if sample.answers and sample.judge == "reward" and not reward.sources:
        found.append("sample.judge  reward scores by the model of the reward stage: give reward.sources too")
    if sample.answers and sample.judge == "openai":
        found += [f"sample.judge  {line}" for line in unanswered(sample)]
    return found


def _judging(config: Config) -> list[str]:
    """Why the judge of answers would not answer, as far as is known without asking."""
    judge = SampleSection(judge_url=config.evaluate.judge_url)
    lines = unanswered(judge) if config.evaluate.judge_model else []
    return [f"evaluate.judge_model  {line.replace('sample.', 'evaluate.')}" for line in lines]


def _weighed(config: Config, inputs: Inputs) -> list[tuple[str, set[str], set[str]]]:
    """Every option that weighs sources by name: its name, the names it gives, and those that there are."""
    options = [("shard.weights", config.shard.weights, inputs.text), ("sft.weights", config.sft.weights, inputs.chats)]
    return [
        (option, set(weights), {source.name for source in sources.sources})
        for option, weights, sources in options
        if sources
    ]


def _standard(config: Config, problems: list[str]) -> tuple[SourceSet | None, list[Source]]:
    """The exams of ``evaluate.exams`` with their forms, and those that are of no form, to be asked as own ones; what
    is wrong is added to ``problems``."""
    from pipeline.evaluation.standard.named import recognised
    from pipeline.running.peek import peek

    known, others, wrong = recognised(config.evaluate.exams, config.evaluate.shots)
    wrong += peek(others, "exam", config.evaluate.max_bad_records)
    problems += [f"evaluate.exams  {line}" for line in wrong]
    return (SourceSet("exam", tuple(known)) if known else None), others


def _misnamed(config: Config, inputs: Inputs) -> list[str]:
    """Weights for a source that is not there, but nearly: a slip of the pen, which must not pass for no weight."""
    return [
        f"{option}  no source is named {stranger}; did you mean {close[0]}? sources are {', '.join(sorted(names))}"
        for option, given, names in _weighed(config, inputs)
        for stranger in sorted(given - names)
        if (close := difflib.get_close_matches(stranger, names - given, n=1, cutoff=0.75))
    ]


def notes(config: Config, inputs: Inputs) -> list[str]:
    """What a person should know of a config before it runs, although nothing is wrong with it."""
    from pipeline.evaluation.standard.named import told

    exams = [told(source, config.evaluate.shots) for source in inputs.standard.sources] if inputs.standard else []
    return exams + [
        f"{option} of {', '.join(sorted(given - names))} has no effect: this run reads {', '.join(sorted(names))}"
        for option, given, names in _weighed(config, inputs)
        if given - names
    ]


def undevised(config: Config) -> list[str]:
    """Why this machine cannot train as ``resources`` ask; empty when it can."""
    return lacking(config.resources)


def withdrawn(inputs: Inputs, store: Store) -> list[str]:
    """A line for every source that must not be used any more (``pipeline invalidate``); empty when all may."""
    return [
        f"{field.name}  {source.name} was withdrawn: {why}; leave it out, or `pipeline invalidate {source.name} --undo`"
        for field in fields(inputs)
        if isinstance(given := getattr(inputs, field.name), SourceSet)
        for source in given.sources
        if (why := store.withdrawals.source(source.digest, (file.sha256 for file in source.files)))
    ]


def _documents(path: str) -> Source:
    """An earlier document artifact, by its directory; one that a store holds whole is known by its recorded digest."""
    root = Path(path)
    if not any(root.glob("part-*.parquet")):
        raise ValueError(f"{path}: no part-*.parquet there; give the directory of a document artifact")
    parts = sorted(root.glob("part-*.parquet"))
    states = [state_of(part) for part in parts]  # before anything is read of them
    known = None
    if (root / "lineage.json").is_file() and PLAIN.fullmatch(root.parent.name) and PLAIN.fullmatch(root.name):
        known = Store(root.parent.parent).examine(root.parent.name, root.name).artifact
    listed: Manifest = (
        read_manifest(root) if known else {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in parts}
    )
    files = [
        SourceFile(part.name, str(part.resolve()), listed[part.name]["bytes"], listed[part.name]["sha256"], state)
        for part, state in zip(parts, states, strict=True)
    ]
    # what no store vouches for is known by its parts, which are what is read
    return Source(root.name, known.digest if known else digest_of(listed), tuple(files))
