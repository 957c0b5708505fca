"""The code fingerprint of a stage: the project files it can reach, each in a normal form of its meaning.

A module counts by its syntax tree without comments, docstrings, formatting and the annotations of functions, so a
reworded comment never costs a retrain, and a changed helper three imports away always does (Prefect's TASK_SOURCE sees
neither). With a module come the ``__init__`` files that its import runs, and the other files of its folder (templates,
style sheets). The form is our own, because ``ast.dump`` differs between Python versions and machines of several
versions share a store; a test holds it against a constant.

Reading all files takes a second. A :class:`Memo` keeps what each one meant, for as long as the file's size, times and
inode stay as they were.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from storage.files import write_text

MEANINGLESS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of syntax nodes that say nothing, or the same as another."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


SETTLED_NS = 2_000_000_000
"""A file that was changed less than so long ago is not remembered: the clock of its file system may not tell the next
change from this one."""


@dataclass(frozen=True)
class Meaning:
    """What a source file means ("" when it does nothing) and the dotted names that it imports."""

    digest: str
    imports: tuple[str, ...]


class Memo:
    """What files meant when they were last read, in a small file of this machine; without one nothing is kept.

    A line that does not fit its file, or was written by another form of this module, is not used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.known, self.fresh = path, dict[str, Any](), False
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(path.read_text("utf-8")) if path else None
            if isinstance(told, dict) and cast(dict[str, Any], told).get("form") == _own_form():
                self.known = cast(dict[str, Any], cast(dict[str, Any], told)["files"])

    def meaning(self, path: Path) -> Meaning:
        """What the file at ``path`` means now."""
        found = path.stat()
        stamp = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        with contextlib.suppress(KeyError, TypeError, ValueError):
            size, mtime, ctime, inode, digest, imports = self.known[str(path)]
            if [size, mtime, ctime, inode] == stamp:
                return Meaning(str(digest), tuple(str(name) for name in imports))
        meaning = _meaning(path, *stamp)
        if self.path and max(found.st_mtime_ns, found.st_ctime_ns) < time.time_ns() - SETTLED_NS:
            self.known[str(path)] = [*stamp, meaning.digest, list(meaning.imports)]
            self.fresh = True
        return meaning

    def keep(self) -> None:
        """Write down what is new; a folder that is not there, or cannot be written, is left as it is."""
        if self.path and self.fresh and self.path.parent.parent.is_dir():
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(exist_ok=True)
                write_text(self.path, json.dumps({"form": _own_form(), "files": self.known}))
                self.fresh = False


@functools.cache
def _own_form() -> str:
    """This module's own content: a memo of another form of it says nothing."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def fingerprint(
    entries: Iterable[str], root: Path, packages: frozenset[str], never: frozenset[str], memo: Memo | None = None
) -> dict[str, str]:
    """``{path: 16 hex}`` of every project file that counts for the modules ``entries``, paths relative to ``root``.

    ``root`` holds the ``packages``; a module named in ``never``, or below a package named there, is left out with what
    only it imports. Imports inside functions count, those for type checkers do not. Raises FileNotFoundError for an
    entry that does not exist.
    """
    memo = memo or Memo()
    found: dict[str, str] = {}
    seen: set[str] = set()
    todo = list(entries)
    for name in todo:
        if _find(name, root) is None:
            raise FileNotFoundError(f"stage code: no module {name} below {root}")
    while todo:
        name = todo.pop()
        path = _find(name, root)
        if name in seen or path is None or _is_below(name, never):
            continue
        seen.add(name)
        module = memo.meaning(path)
        if module.digest:
            found[path.relative_to(root).as_posix()] = module.digest
        found |= {file.relative_to(root).as_posix(): digest for file, digest in _beside(path)}
        parts = name.split(".")
        todo += [".".join(parts[:i]) for i in range(1, len(parts))]
        todo += [m for i in module.imports if i.split(".")[0] in packages for m in _modules(i, root)]
    return dict(sorted(found.items()))


def _is_below(name: str, packages: frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in packages for i in range(len(parts)))


def _find(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _modules(imported: str, root: Path) -> list[str]:
    """The module an import of the dotted name means: ``a.b.c`` is module a.b.c, or the name c in module a.b."""
    for name in (imported, imported.rpartition(".")[0]):
        if name and _find(name, root):
            return [name]
    return []


def _beside(module: Path) -> Iterator[tuple[Path, str]]:
    """Files of the module's folder that are no Python, with their digests."""
    for path in sorted(module.parent.iterdir()):
        if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith("."):
            stamp = path.stat()
            yield path, _content(path, stamp.st_mtime_ns, stamp.st_size)


@functools.cache
def _content(path: Path, mtime: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


@functools.cache
def _meaning(path: Path, *stamp: int) -> Meaning:
    tree = _tree(path.read_bytes())
    for node in ast.walk(tree):
        _simplify(node)
    digest = hashlib.sha256("\n".join(_lines(tree, "")).encode()).hexdigest()[:16] if tree.body else ""
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [f"{node.module}.{a.name}" for a in node.names]
    return Meaning(digest, tuple(imports))


def _tree(source: bytes) -> ast.Module:
    """The syntax tree; tried again when two threads build trees at once, which Python before 3.11.8 takes for an error
    (CPython gh-106905)."""
    for _ in range(20):
        with contextlib.suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


def _simplify(node: ast.AST) -> None:
    """Take from a node what does not change what the code does."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            setattr(node, name, [s for s in cast(list[ast.stmt], value) if not _says_nothing(s)])
    if isinstance(node, FUNCTIONS):
        node.returns = None
        for inner in ast.walk(node):
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                inner.annotation = ast.Constant(None)
    elif isinstance(node, ast.arg):
        node.annotation = None
    elif isinstance(node, ast.JoinedStr):
        node.values = list(_merged(node.values))


def _says_nothing(statement: ast.stmt) -> bool:
    """A docstring, ``pass``, a ``__future__`` import, or what only type checkers see."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    if isinstance(statement, ast.If) and not statement.orelse:
        test = statement.test
        return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    )


def _merged(values: list[ast.expr]) -> Iterator[ast.expr]:
    """Parts of an f-string with neighbouring texts as one: where they are cut depends on the Python version."""
    text = ""
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            text += value.value
            continue
        if text:
            yield ast.Constant(text)
        text = ""
        yield value
    if text:
        yield ast.Constant(text)


def _lines(value: object, indent: str) -> Iterator[str]:
    """A syntax tree as lines: a node's name, then its fields by name; what is empty or None is left out."""
    if isinstance(value, ast.Constant):
        yield f"{indent}{type(value.value).__name__} {value.value!a}"  # printable is a matter of the version
    elif isinstance(value, ast.AST):
        yield f"{indent}{type(value).__name__}"
        for name, field in sorted(ast.iter_fields(value)):
            if name not in MEANINGLESS and field is not None and field != []:
                yield f"{indent} .{name}"
                yield from _lines(field, indent + "  ")
    elif isinstance(value, list):
        for item in cast(list[object], value):
            yield from _lines(item, indent)
            yield f"{indent},"
    else:
        yield f"{indent}{value!r}"
