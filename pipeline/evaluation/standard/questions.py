"""The questions of a standard exam alone: what must not be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.standard.files import LABELS, ExamFile, ExamSource, is_labels
from pipeline.evaluation.standard.forms import layout
from pipeline.evaluation.standard.records import Document, Unread, documents


def questions(source: ExamSource, form: str) -> list[dict[str, str]]:
    """``{"id", "set", "text"}`` of every question that is asked; ids are those of the items."""
    labels = labels_of(source)
    return [
        {"id": id_of(document), "set": source.name, "text": document.question}
        for subject in layout(source, form).subjects.values()
        for document in read_all(form, subject.asked, labels)
        if isinstance(document, Document)
    ]


def id_of(document: Document) -> str:
    """What an item is called: its file and line."""
    return f"{document.path}:{document.line}"


def labels_of(source: ExamSource) -> dict[str, ExamFile]:
    """The lists of labels among a source's files, by path."""
    return {file.relpath: file for file in source.files if is_labels(file.relpath)}


def read_all(form: str, files: Sequence[ExamFile], labels: Mapping[str, ExamFile]) -> Iterator[Document | Unread]:
    """The documents of files that are no lists of labels, each file with its list."""
    for file in files:
        if not is_labels(file.relpath):
            yield from documents(form, file, labels.get(file.relpath.partition(".")[0] + LABELS))
