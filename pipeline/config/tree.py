"""The whole config of a run: one frozen tree of sections, presets in TOML, one override grammar ``section.key=value``.

Everything is checked before anything runs, and every problem is reported at once, path first. TOML is the file
format because YAML reads ``lr: 3e-4`` as a string and ``no`` as False.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from model.network.hf_config import from_hf, to_hf
from model.tokens.imported import check_template
from model.tokens.vocabulary import check_tokens
from pipeline.config.base import Section
from pipeline.config.cleaning import CleanSection, DecontaminateSection, DedupSection, LanguageSection
from pipeline.config.data import IngestSection, ShardSection
from pipeline.config.evaluation import EvaluateSection, ExportSection, ReportSection
from pipeline.config.resources import Resources
from pipeline.config.tokens import EncodeSection, TokenizerSection, tokenizer_file
from pipeline.config.training import DpoSection, PretrainSection, SftSection
from storage.places import ROOT

PRESETS = ROOT / "pipeline" / "presets"


class ConfigError(ValueError):
    """Everything that is wrong with a config, one problem a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Config(Section):
    """One section per stage, and the resources they run on."""

    ingest: IngestSection = Field(default_factory=IngestSection)
    clean: CleanSection = Field(default_factory=CleanSection)
    language: LanguageSection = Field(default_factory=LanguageSection)
    dedup: DedupSection = Field(default_factory=DedupSection)
    decontaminate: DecontaminateSection = Field(default_factory=DecontaminateSection)
    shard: ShardSection = Field(default_factory=ShardSection)
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection)
    encode: EncodeSection = Field(default_factory=EncodeSection)
    pretrain: PretrainSection = Field(default_factory=PretrainSection)
    sft: SftSection = Field(default_factory=SftSection)
    dpo: DpoSection = Field(default_factory=DpoSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    report: ReportSection = Field(default_factory=ReportSection)
    export: ExportSection = Field(default_factory=ExportSection)
    resources: Resources = Field(default_factory=Resources)

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
    def _what_is_imported_can_be_exported(self) -> Config:
        """Raises ValueError for a chat template of the initial model, or a tokenizer for GGUF, that would be refused or
        lost at the end."""
        init = Path(self.pretrain.init).expanduser()
        if self.pretrain.init and init.is_dir() and self.tokenizer.template == "same":
            check_template(init, f"pretrain.init  {init}")
        if self.export.gguf != "off":
            self._check_gguf(init if self.pretrain.init else None)
        return self

    def _check_gguf(self, init: Path | None) -> None:
        from pipeline.release.gguf_export import check_scaling, check_tokenizer

        if self.tokenizer.existing:
            check_tokenizer(json.loads(tokenizer_file(self.tokenizer.existing).read_text(encoding="utf-8")))
        if init is None:
            check_scaling(to_hf(self.pretrain.model)["rope_scaling"])
        elif init.is_dir():
            check_scaling(
                to_hf(from_hf(json.loads((init / "config.json").read_text(encoding="utf-8"))))["rope_scaling"]
            )


def presets() -> list[str]:
    """Names of the presets that come with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load(preset: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a preset name or a TOML file's path, with overrides applied in order. Raises ConfigError."""
    values = _read(preset)
    problems: list[str] = []
    for text in overrides:
        problem = _override(values, text)
        if problem:
            problems.append(problem)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += [_explain(e) for e in error.errors()]
    if problems:
        raise ConfigError(problems)
    return config


def _read(preset: str) -> dict[str, Any]:
    path = Path(preset) if preset.endswith(".toml") else PRESETS / f"{preset}.toml"
    if not path.is_file():
        if preset.endswith(".toml"):
            raise ConfigError([f"{preset}  no such file"])
        raise ConfigError(
            [
                f"preset {preset}  unknown;{_meant(preset, presets()) or ''} presets are {', '.join(presets())}, or"
                " give a .toml file"
            ]
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}  not valid TOML: {error}"]) from None
    values.pop("about", None)
    return values


def about(preset: str) -> str:
    """The one-line description that a preset file carries as ``about``."""
    return tomllib.loads((PRESETS / f"{preset}.toml").read_text(encoding="utf-8")).get("about", "")


def _override(values: dict[str, Any], text: str) -> str | None:
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
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            return f"{path}  {name} is a value, not a table"
    place[names[-1]] = _value(raw.strip(), names)
    return None


def _value(raw: str, names: list[str]) -> Any:
    """A TOML value (``1e-3``, ``true``, ``["a", "b"]``), or the text itself; a list field also takes ``a,b``."""
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw
    if names[-1] == "sources" and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return value


def _explain(error: dict[str, Any]) -> str:
    """One pydantic error as a line: path, what is wrong, and the name that was probably meant."""
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return (
            f"{where}  unknown key;{_meant(str(error['loc'][-1]), _siblings(error['loc'])) or ' see pipeline config'}"
        )
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = (
        ""
        if isinstance(error["input"], dict)
        else f" (given {json.dumps(error['input'], default=str, ensure_ascii=False)[:60]})"
    )
    return f"{where}  {message[0].lower() + message[1:]}{given}" if where else message


def _siblings(loc: tuple[Any, ...]) -> list[str]:
    """Field names at the place of an unknown key."""
    node: Any = Config()
    for name in loc[:-1]:
        node = getattr(node, str(name), None)
    fields = getattr(type(node), "model_fields", None) or getattr(node, "__dataclass_fields__", {})
    return list(fields)


def _meant(word: str, known: Any) -> str | None:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" did you mean {close[0]}?" if close else None
