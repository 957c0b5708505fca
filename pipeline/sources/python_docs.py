"""``python-docs``: the documentation that every machine with Python has: docstrings and language topics.

Read from ``.py`` files by their syntax trees; nothing is imported, so nothing runs. The text is real and noisy: licence
boilerplate, vendored copies, reST markup, deprecation notes, and near-duplicates by the hundred.

One document is a module's docstring with its short members, or one top-level class or function with a long docstring.
The standard library and the topics come first, then the modules of the well-known packages the project brings, in a
mixed but fixed order (by the hash of their path). A cap on characters is shared over runs of modules by their size, so
that runs can be read in parallel and give the same.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import inspect
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.running.jobs import Job
from pipeline.sources import SourceFile

LOCATION = "python-docs"
VERSION = 1
"""Raise when the documents made from the same installation change."""
PACKAGES = frozenset(
    {
        "boto3",
        "botocore",
        "deepspeed",
        "fastapi",
        "matplotlib",
        "mlflow",
        "numba",
        "numpy",
        "pandas",
        "prefect",
        "pyarrow",
        "pydantic",
        "requests",
        "rich",
        "safetensors",
        "scikit_learn",
        "scipy",
        "sqlalchemy",
        "torch",
        "transformers",
        "urllib3",
    }
)
"""Distributions that come with the project itself. Others are left out: installing one must not make a new corpus of
the same machine."""
_SKIP = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "__pycache__",
        "lib2to3",
        "pydoc_data",
        "_vendor_test",
    }
)
_SOURCE_PER_CHAR = 6
"""About one character in six of Python source is a docstring's (measured on the standard library: 6.8)."""
_RUN_BYTES = 2_000_000
_LONG = 300


def list_python_docs() -> list[SourceFile]:
    """One pseudo file whose digest is that of the Python version and the names and versions of what is installed."""
    listing = "\n".join([f"python-docs {VERSION} {platform.python_version()}", *_distributions()])
    return [SourceFile("python-docs", LOCATION, 0, hashlib.sha256(listing.encode()).hexdigest())]


def _distributions() -> list[str]:
    """``*.dist-info`` directories of :data:`PACKAGES`, which are names and versions; one directory listing each, no
    metadata read."""
    names = {entry for base in _site_dirs() for entry in os.listdir(base) if entry.endswith(".dist-info")}
    return sorted(name for name in names if name.split("-")[0].lower() in PACKAGES)


def _site_dirs() -> list[Path]:
    return sorted({Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")})


def runs(max_chars: int) -> list[Job]:
    """The work as JSON jobs ``{"files": [[path, relpath, module]…], "max_chars"}`` whose caps add up to at most
    ``max_chars`` (0: no cap)."""
    budget = max_chars * _SOURCE_PER_CHAR if max_chars else sys.maxsize
    jobs: list[Job] = []
    size = taken = 0
    for path, relpath, module, source_bytes in _modules():
        if taken >= budget:
            break
        if not jobs or size >= _RUN_BYTES:
            jobs.append({"files": [], "bytes": 0})
            size = 0
        jobs[-1]["files"].append([path, relpath, module])
        jobs[-1]["bytes"] += source_bytes
        size += source_bytes
        taken += source_bytes
    for job in jobs:
        job["max_chars"] = max(1, max_chars * job.pop("bytes") // max(taken, 1)) if max_chars else 0
    return jobs


def _modules() -> Iterator[tuple[str, str, str, int]]:
    """(path, path inside its root, dotted name, bytes of source), topics first, then the standard library, then the
    rest."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    topics = stdlib / "pydoc_data" / "topics.py"
    if topics.is_file():
        # The topics are text through and through, so their size counts as text.
        yield str(topics), "pydoc_data/topics.py", "pydoc_data.topics", topics.stat().st_size * _SOURCE_PER_CHAR
    for base, dirs, names in os.walk(stdlib):
        dirs[:] = sorted(d for d in dirs if d not in _SKIP)
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(base, name)
                yield (
                    str(path),
                    path.relative_to(stdlib).as_posix(),
                    _dotted(path.relative_to(stdlib)),
                    path.stat().st_size,
                )
    installed = {relpath: (path, size) for path, relpath, size in _installed()}
    for relpath in sorted(installed, key=lambda r: hashlib.sha256(r.encode()).digest()):
        path, size = installed[relpath]
        yield path, relpath, _dotted(Path(relpath)), size


def _installed() -> Iterator[tuple[str, str, int]]:
    """Modules of installed distributions with their sizes, from the distributions' RECORD files: no directory is
    walked."""
    for base in _site_dirs():
        for name in _distributions():
            record = base / name / "RECORD"
            if not record.is_file():
                continue  # not installed by pip; its files are not known to be whole
            with open(record, encoding="utf-8", newline="") as lines:
                for row in csv.reader(lines):
                    if len(row) == 3 and row[0].endswith(".py") and row[2].isdigit() and int(row[2]) > 500:
                        parts = row[0].split("/")
                        if parts[0] != ".." and _SKIP.isdisjoint(parts):
                            yield str(base / row[0]), row[0], int(row[2])


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def read_run(job: Job) -> Iterator[dict[str, Any]]:
    """The documents of one run: ``{"text", "id": dotted name, "path", "line"}``, until the run's cap is reached."""
    left = job["max_chars"] or sys.maxsize
    for path, relpath, module in job["files"]:
        for document in _documents(Path(path), module):
            if len(document["text"]) > left:
                return
            left -= len(document["text"])
            yield {**document, "path": relpath}


def _documents(path: Path, module: str) -> Iterator[dict[str, Any]]:
    """Documents of one module; none when it is not valid Python 3 (templates, other versions' syntax)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: invalid escapes in other people's code
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    if module == "pydoc_data.topics":
        yield from _topics(tree)
        return
    parts = [f"{module}\n\n{ast.get_docstring(tree)}"] if ast.get_docstring(tree) else []
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text = _describe(node)
        if len(text) >= _LONG:
            yield {"text": f"{module}.{text}", "id": f"{module}.{node.name}", "line": node.lineno}
        elif text:
            parts.append(text)
    if parts:
        yield {"text": "\n\n".join(parts), "id": module, "line": 1}


def _topics(tree: ast.Module) -> Iterator[dict[str, Any]]:
    """The language reference's topics: one dict literal of name to text."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                assert key is not None  # the module has no dict with ** in it
                yield {
                    "text": ast.literal_eval(value).strip(),
                    "id": f"topic {ast.literal_eval(key)}",
                    "line": value.lineno,
                }


def _describe(node: ast.AST) -> str:
    """Signature and docstring of a class (with its methods) or function; empty when it has none."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        own = _doc(node)
        methods = [text for text in map(_describe, node.body) if text]
        return (
            "\n\n".join([f"{node.name}({bases})" + (f"\n\n{own}" if own else ""), *methods]) if own or methods else ""
        )
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _doc(node):
        return f"{node.name}({ast.unparse(node.args)})\n\n{_doc(node)}"
    return ""


def _doc(node: Any) -> str:
    """The docstring as written, dedented; lone surrogates (legal in source by escapes) are left out."""
    raw = ast.get_docstring(node, clean=False)
    return inspect.cleandoc(raw).encode("utf-8", "ignore").decode() if raw else ""
