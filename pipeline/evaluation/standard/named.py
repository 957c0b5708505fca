"""What ``evaluate.exams`` names: paths, the name of a folder in ``PIPELINE_HOME/exams``, and forms said by hand."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.evaluation.gold import NotAnItem
from pipeline.evaluation.standard.forms import form_of, layout
from pipeline.evaluation.standard.prompts import read_standard
from pipeline.evaluation.titles import FORMS
from pipeline.sources import Source, resolve
from storage.digest import sha256_json
from storage.places import home


def recognised(names: Sequence[str], shots: int = -1) -> tuple[list[Source], list[Source], list[str]]:
    """The sources that are standard exams, with their form; those that are of no such form; and what is wrong, a line
    each.

    A source that holds nothing but examples (a train file named by itself) gives them to the one of its form that is
    asked.
    """
    if not names:
        return [], [], []
    said = [_said(name) for name in names]
    try:
        sources = resolve([path for _, path in said], "exam")
    except (ValueError, OSError) as error:
        return [], [], str(error).splitlines()
    known: list[Source] = []
    others: list[Source] = []
    wrong: list[str] = []
    for (form, _), source in zip(said, sources, strict=True):
        try:
            form = form or form_of(source)
        except (NotAnItem, OSError) as error:
            wrong.append(f"{source.name}: {error}")
            continue
        known += [replace(source, form=form)] if form else []
        others += [] if form else [source]
    known = _with_examples(known)
    for source in known:
        try:
            told(source, shots)
        except (NotAnItem, OSError) as error:
            wrong.append(f"{source.name}: {error}")
    return known, others, wrong


@functools.lru_cache(maxsize=64)
def told(source: Source, shots: int) -> str:
    """What a source is as an exam, in a line. Raises NotAnItem when it cannot be asked."""
    return read_standard(source, source.form, None if shots < 0 else shots)["told"]


def _said(name: str) -> tuple[str, str]:
    """The form that a name says, or nothing, and its path."""
    form, colon, path = name.partition(":")
    if colon and form in FORMS and path:
        return form, _place(path)
    return "", _place(name)


def _place(path: str) -> str:
    """A path as it is, or the folder of that name among the exams kept at home."""
    kept = home() / "exams" / path
    return str(kept) if not Path(path).expanduser().exists() and kept.exists() else path


def _with_examples(sources: Sequence[Source]) -> list[Source]:
    """Sources with nothing to ask become the examples of another one of their form."""
    asked = [s for s in sources if any(subject.asked for subject in layout(s, s.form).subjects.values())]
    for source in (s for s in sources if s not in asked):
        at = next((i for i, own in enumerate(asked) if own.form == source.form), None)
        if at is None:
            asked.append(source)
            continue
        files = tuple(sorted((*asked[at].files, *source.files), key=lambda f: f.relpath))
        asked[at] = replace(asked[at], files=files, digest=sha256_json([asked[at].digest, source.digest]))
    return asked
