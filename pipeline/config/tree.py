"""The whole config of a run: one frozen tree of sections, presets in TOML, one override grammar ``section.key=value``.

Everything is checked before anything runs, and every problem is reported at once, path first. TOML is the file
format because YAML reads ``lr: 3e-4`` as a string and ``no`` as False.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast, get_origin, get_type_hints

from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails

from model.network.hf_config import from_hf, to_hf
from model.tokens.theirs import foreign_template, special_texts
from model.tokens.vocabulary import check_tokens
from pipeline.config.base import Section
from pipeline.config.cleaning import CleanSection, DecontaminateSection, DedupSection, LanguageSection
from pipeline.config.data import IngestSection, ShardSection
from pipeline.config.dpo import DpoSection
from pipeline.config.evaluation import EvaluateSection, ExportSection, ReportSection
from pipeline.config.gate import check_names, parse_rule
from pipeline.config.release import QuantizeSection
from pipeline.config.resources import Resources
from pipeline.config.reward import RewardSection
from pipeline.config.rl import RlSection
from pipeline.config.sample import SampleSection
from pipeline.config.sft import SftSection
from pipeline.config.tokens import EncodeSection, TokenizerSection, tokenizer_file
from pipeline.config.training import PretrainSection
from pipeline.sources import source_names
from storage.errors import Refused
from storage.places import ROOT

PRESETS = ROOT / "pipeline" / "presets"


Table: TypeAlias = dict[str, Any]
"""A table of a TOML file, before anything of it was checked."""


class ConfigError(Refused):
    """Everything that is wrong with a config, one problem a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Config(Section):
    """One section per stage, and the resources they run on."""

    ingest: IngestSection = IngestSection()
    clean: CleanSection = CleanSection()
    language: LanguageSection = LanguageSection()
    dedup: DedupSection = DedupSection()
    decontaminate: DecontaminateSection = DecontaminateSection()
    shard: ShardSection = ShardSection()
    tokenizer: TokenizerSection = TokenizerSection()
    encode: EncodeSection = EncodeSection()
    pretrain: PretrainSection = PretrainSection()
    sft: SftSection = SftSection()
    reward: RewardSection = RewardSection()
    sample: SampleSection = SampleSection()
    dpo: DpoSection = DpoSection()
    rl: RlSection = RlSection()
    evaluate: EvaluateSection = EvaluateSection()
    report: ReportSection = ReportSection()
    quantize: QuantizeSection = QuantizeSection()
    export: ExportSection = ExportSection()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Config:
        """A teacher's probabilities are of its own tokens. Raises ValueError when the student would have others."""
        teacher, own = self.sft.distill.teacher, self.tokenizer
        if teacher and (not own.existing or own.extend):
            raise ValueError(
                f"sft.distill.teacher  teacher and student need one vocabulary: set tokenizer.existing={teacher} and"
                " tokenizer.extend=0"
            )
        if teacher:
            check_tokens(Path(teacher).expanduser() / "tokenizer.json", tokenizer_file(own.existing), "the teacher")
        return self

    @model_validator(mode="after")
    def _gate_can_be_checked(self) -> Config:
        """Raises ValueError with every condition that is none, or that names a score which no model will have."""
        problems: list[str] = []
        exams = [name.partition(":")[2] or name for name in self.evaluate.exams]
        sets = [*source_names(self.evaluate.sources), *source_names(exams)]
        for text in self.evaluate.gate:
            try:
                check_names(parse_rule(text), sets)
            except ValueError as error:
                problems.append(f"evaluate.gate  {error}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @model_validator(mode="after")
    def _answers_fit(self) -> Config:
        """Raises ValueError when a prompt with its answer is longer than what the model reads."""
        window = self.pretrain.model.max_seq_len
        if self.rl.wanted and not self.pretrain.init and self.rl.longest > window:
            raise ValueError(
                f"rl.max_completion_length  {self.rl.max_prompt_length} tokens of prompt and"
                f" {self.rl.max_completion_length} of answer are more than the model reads"
                f" (pretrain.model.max_seq_len = {window})"
            )
        return self

    @model_validator(mode="after")
    def _what_is_imported_can_be_exported(self) -> Config:
        """Raises ValueError for a chat template of the initial model, or a tokenizer for GGUF, that would be refused or
        lost at the end."""
        init = Path(self.pretrain.init).expanduser()
        if self.pretrain.init and init.is_dir() and self.tokenizer.template == "same":
            self._check_format(init)
        if self.tokenizer.foreign and (self.sft.tag_weight != 1 or self.sft.compat):
            raise ValueError(
                "sft.tag_weight  tags are weighed in our chat format only: leave it (and sft.compat) out, or set"
                " tokenizer.template=own"
            )
        self._check_forms()
        if self.export.gguf != "off" or any(form.startswith("gguf:") for form in self.quantize.forms):
            self._check_gguf(init if self.pretrain.init else None)
        return self

    def _check_format(self, init: Path) -> None:
        """Raises ValueError when a model was made to talk in another format than its tokenizer's here."""
        template = foreign_template(init, special_texts(init))
        folder = tokenizer_file(self.tokenizer.existing).parent if self.tokenizer.existing else None
        if template and (folder is None or foreign_template(folder, special_texts(folder)) != template):
            raise ValueError(
                f"pretrain.init  {init} brings a chat template of its own: set tokenizer.existing={init} to train and"
                " export in its format, or tokenizer.template=own for ours"
            )

    def _check_forms(self) -> None:
        from pipeline.release.forms import check_forms

        if problems := check_forms(self.quantize.forms):
            raise ValueError(f"quantize.forms  {'; '.join(problems)}")

    def _check_gguf(self, init: Path | None) -> None:
        from pipeline.release.forms import check_rows
        from pipeline.release.gguf_export import check_scaling, check_tokenizer

        if self.tokenizer.existing:
            check_tokenizer(json.loads(tokenizer_file(self.tokenizer.existing).read_text(encoding="utf-8")))
        if init and not init.is_dir():
            return
        told = None if init is None else json.loads((init / "config.json").read_text(encoding="utf-8"))
        config = to_hf(self.pretrain.model if told is None else from_hf(told))
        check_scaling(config)
        check_rows(config, [form.removeprefix("gguf:") for form in self.quantize.forms if form.startswith("gguf:")])


def presets() -> list[str]:
    """Names of the presets that come with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def options() -> Table:
    """Every option's path with its default, in the order of the config: ``pretrain.optim.lr`` and so on."""
    return dict(_leaves(Config(), ""))


def _leaves(node: object, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in _fields(node):
        value = getattr(node, name)
        if _fields(value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _fields(node: object) -> list[str]:
    """Names of the options that a section, or a dataclass in one, holds; none for a plain value."""
    return list(getattr(type(node), "model_fields", None) or getattr(type(node), "__dataclass_fields__", {}))


def load(preset: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a preset name or a TOML file's path, with overrides applied in order. Raises ConfigError."""
    config, problems = examine(preset, overrides)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def examine(preset: str, overrides: list[str] | tuple[str, ...] = ()) -> tuple[Config | None, list[str]]:
    """The config and all of its problems. With problems it holds defaults in place of what is wrong, so that its
    sources can be looked at all the same; None when no preset could be read."""
    try:
        values = read(preset)
    except ConfigError as error:
        return None, error.problems
    problems = [problem for text in overrides if (problem := _override(values, text))]
    config, found = _mended(values)
    return config, list(dict.fromkeys(problems + found))


def _mended(values: Table) -> tuple[Config | None, list[str]]:
    """Validate; take out what is wrong and validate again until nothing more is found, since one wrong value hides
    others: a number of the wrong type hides the range of its neighbour."""
    problems: list[str] = []
    removed: list[tuple[int | str, ...]] = []
    while True:
        try:
            return Config.model_validate(values), problems
        except ValidationError as error:
            found = error.errors()
        places = [tuple(e["loc"]) for e in found]
        for place, e in zip(places, found, strict=True):
            # A check of several values may fail on a default that stands in for what was wrong: that is no finding.
            if not any(gone[: len(place)] == place and str(gone[-1]) in e["msg"] for gone in removed):
                problems.append(_explain(e))
        taken = [gone for place in dict.fromkeys(places) if (gone := _take_out(values, place))]
        if not taken:  # sections are sound and do not go together
            kinds = {name: cast(type[Section], info.annotation) for name, info in Config.model_fields.items()}
            sound: Table = {name: kind(**values.get(name, {})) for name, kind in kinds.items()}
            return Config.model_construct(**sound), problems
        removed += taken


def _take_out(values: Table, place: tuple[int | str, ...]) -> tuple[int | str, ...] | None:
    """Remove the value at a place (or the nearest one around it that was given); where it was, None if nowhere."""
    for length in range(len(place), 0, -1):
        node: Any = values
        for name in place[: length - 1]:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict) and place[length - 1] in node:
            del node[place[length - 1]]
            return place[:length]
    return None


def read(preset: str, below: tuple[str, ...] = ()) -> Table:
    """A preset's values as its file gives them, on top of those of its ``base``: the name of a preset or a .toml file,
    a relative one beside this file. Raises ConfigError; ``below`` are the presets that lead here."""
    path = (Path(preset) if preset.endswith(".toml") else PRESETS / f"{preset}.toml").expanduser()
    if not path.is_file():
        if preset.endswith(".toml"):
            raise ConfigError([f"{preset}  no such file"])
        raise ConfigError(
            [
                f"preset {preset}  unknown;{_meant(preset, presets()) or ''} presets are {', '.join(presets())}, or"
                " give a .toml file"
            ]
        )
    if (here := str(path.resolve())) in below:
        raise ConfigError([f"{path}  base leads back to itself: {' -> '.join([*map(_short, below), _short(here)])}"])
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}  not valid TOML: {error}"]) from None
    values.pop("about", None)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError([f"{path}  base is the name of a preset or of a .toml file, not {json.dumps(base)}"])
    if base.endswith(".toml") and not Path(base).expanduser().is_absolute():
        base = str(path.parent / base)
    return _over(read(base, (*below, here)), values, Config())


def _short(path: str) -> str:
    return Path(path).stem if Path(path).parent == PRESETS else path


def _over(base: Table, own: Table, node: object) -> Table:
    """``own`` on top of ``base``: tables of options are put together, a value that is itself a table is replaced."""
    merged = dict(base)
    for name, value in own.items():
        inside = getattr(node, name, None)
        both = isinstance(value, dict) and isinstance(base.get(name), dict) and bool(_fields(inside))
        merged[name] = _over(base[name], value, inside) if both else value
    return merged


def about(preset: str) -> str:
    """The one-line description that a preset file carries as ``about``."""
    return tomllib.loads((PRESETS / f"{preset}.toml").read_text(encoding="utf-8")).get("about", "")


def _override(values: Table, text: str) -> str | None:
    """Apply ``section.key=value`` to the raw values; the problem if it cannot be."""
    path, equals, raw = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names) or len(names) < 2:
        return f"{text}  is not an override; write section.key=value, for example pretrain.optim.lr=1e-3"
    if (names[0]) not in Config.model_fields:
        return (
            f"{path}  no section {names[0]};{_meant(names[0], Config.model_fields) or ''} sections are"
            f" {', '.join(Config.model_fields)}"
        )
    place = values
    for name in names[:-1]:
        if not isinstance(place.get(name, {}), dict):
            return f"{path}  {name} is a value, not a table"
        place = place.setdefault(name, {})
    place[names[-1]] = _value(raw.strip(), names)
    return None


def _value(raw: str, names: list[str]) -> Any:
    """A TOML value (``1e-3``, ``true``, ``["a", "b"]``), or the text itself; a list field also takes ``a,b``."""
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw
    if isinstance(value, str) and _is_list(names):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return value


def _is_list(names: list[str]) -> bool:
    """Whether an option, by its dotted name, is a list of values."""
    kind: Any = Config
    for name in names:
        kind = get_type_hints(kind).get(name) if isinstance(kind, type) else None
    return get_origin(kind) in (list, tuple)


def _explain(error: ErrorDetails) -> str:
    """One pydantic error as a line: path, what is wrong, and the name that was probably meant."""
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}  unknown key;{_intended(error['loc']) or ' see pipeline config PRESET --explain'}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = (
        ""
        if isinstance(error["input"], dict)
        else f" (given {json.dumps(error['input'], default=str, ensure_ascii=False)[:60]})"
    )
    return f"{where}  {message[0].lower() + message[1:]}{given}" if where else message


def _intended(loc: tuple[int | str, ...]) -> str:
    """What an unknown key was probably meant to be: a neighbour, else an option of this name elsewhere."""
    word, section = str(loc[-1]), str(loc[0])
    known = list(options())
    same = [path for path in known if path.rpartition(".")[2] == word]
    if best := next((path for path in same if path.startswith(f"{section}.")), None):
        return f" did you mean {best}?"
    if same:  # an option of this very name is more likely meant than a neighbour that looks a little like it
        return f" did you mean {' or '.join(same[:3])}?"
    node: Any = Config()
    for name in loc[:-1]:
        node = getattr(node, str(name), None)
    if close := _meant(word, _fields(node)):
        return close
    nested = {path.rpartition(".")[2]: path for path in known if path.startswith(f"{section}.")}
    if close := difflib.get_close_matches(word, nested, n=1, cutoff=0.7):
        return f" did you mean {nested[close[0]]}?"
    return ""


def _meant(word: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" did you mean {close[0]}?" if close else None
