"""The code fingerprint of a stage: the project modules it can reach, as normalised syntax trees.

Comments, docstrings and formatting do not count, so a reworded comment never costs a retrain, and a changed helper
three imports away always does (Prefect's TASK_SOURCE sees neither).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path


def fingerprint(entries: Iterable[str], root: Path, packages: frozenset[str], skip: frozenset[str]) -> dict[str, str]:
    """``{module: 16 hex}`` of every project module reachable by import from the modules ``entries``.

    ``root`` holds the ``packages``; a module named in ``skip`` (or below a package named there) is left out, with
    what only it imports. Raises FileNotFoundError for an entry that does not exist.
    """
    seen: dict[str, str] = {}
    todo = list(entries)
    while todo:
        name = todo.pop()
        if name in seen or _skipped(name, skip):
            continue
        path = _find(name, root)
        if path is None:
            raise FileNotFoundError(f"stage code: no module {name} below {root}")
        stamp = path.stat()
        digest, imports = _parse(path, stamp.st_mtime_ns, stamp.st_size)
        seen[name] = digest
        todo += [m for i in imports if i.split(".")[0] in packages for m in _modules(i, root)]
    return dict(sorted(seen.items()))


def _skipped(name: str, skip: frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in skip for i in range(len(parts)))


def _find(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _modules(imported: str, root: Path) -> list[str]:
    """The modules an import of the dotted name can mean: ``a.b.c`` is module a.b.c, or the name c in module a.b."""
    for name in (imported, imported.rpartition(".")[0]):
        if name and _find(name, root):
            return [name]
    return []


@functools.cache
def _parse(path: Path, mtime: int, size: int) -> tuple[str, tuple[str, ...]]:
    tree = _tree(path.read_bytes())
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [f"{node.module}.{a.name}" for a in node.names]
        _drop_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], tuple(imports)


def _tree(source: bytes) -> ast.Module:
    """The syntax tree; tried again when two threads build trees at once, which Python before 3.11.8 takes for an error
    (CPython gh-106905)."""
    for _ in range(20):
        with contextlib.suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    kept: list[ast.stmt] = [
        s
        for s in node.body
        if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str))
    ]
    node.body = kept or [ast.Pass()]
