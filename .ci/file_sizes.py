"""Names every Python file that has grown too long to be read in one go; exit code 1 when there is one.

Without arguments all files of the checkout count, else those that are given.
"""

import sys
from pathlib import Path

LIMIT = 400
"""Lines of a file."""
EXEMPT = (".venv",)


def too_long(root: Path, names: list[str]) -> list[str]:
    """A line for each of the files ``names`` (all below ``root``, when there are none) with more lines than the
    limit."""
    paths = [root / name for name in names] or sorted(root.rglob("*.py"))
    inside = [p for p in paths if p.relative_to(root).parts[0] not in EXEMPT]
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in inside}
    return [f"{p.relative_to(root)}: {n} lines, more than {LIMIT}: split it" for p, n in lengths.items() if n > LIMIT]


if __name__ == "__main__":
    wrong = too_long(Path.cwd(), sys.argv[1:])
    print("\n".join(wrong) or f"no file has more than {LIMIT} lines")
    sys.exit(bool(wrong))
