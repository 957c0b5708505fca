"""A home that was copied or moved: MLflow keeps absolute places in its database, and would go on writing to the old
one.

MLflow 3.17 has a relative form for servers alone (``mlflow-artifacts:``), and the tracker writes to the database
without one. So a database below a home that names another home's folder is mended before it is used.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Columns with an address below ``<home>/mlflow/artifacts``."""
PATHS = (
    ("tags", "value", "key"),
    ("logged_model_tags", "tag_value", "tag_key"),
    ("model_version_tags", "value", "key"),
)
"""Columns with a path below ``<home>/store``, in rows of the name ``artifact.path``."""
ARTIFACTS = "/mlflow/artifacts"


def mend(home: Path) -> list[str]:
    """Point the MLflow database below ``home`` at this home, if it names another; gives the homes it named.

    Only addresses that begin with the other home's are changed, so an experiment elsewhere (a bucket) stays there.
    """
    file = home / "mlflow" / "mlflow.db"
    if not file.is_file():
        return []
    own = (home / "mlflow" / "artifacts").as_uri()
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database, database:
        have = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in have:
            return []
        named = [where for (where,) in database.execute("SELECT DISTINCT artifact_location FROM experiments") if where]
        others = [where for where in named if where.startswith("file:") and where.endswith(ARTIFACTS) and where != own]
        for other in others:
            for table, column in PLACES:
                if table in have:
                    _replace(database, table, column, other, own)
            before, after = (str(Path(_path(address)).parent.parent / "store") for address in (other, own))
            for table, column, name in PATHS:
                if table in have:
                    _replace(database, table, column, before, after, f" AND {name} = 'artifact.path'")
    return [str(Path(_path(other)).parent.parent) for other in others]


def _path(address: str) -> str:
    from urllib.parse import unquote, urlparse

    return unquote(urlparse(address).path)


def _replace(database: sqlite3.Connection, table: str, column: str, before: str, after: str, only: str = "") -> None:
    """Replace the beginning ``before`` of a column's values, where a path component ends there."""
    n = len(before)
    database.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
        f"WHERE (substr({column}, 1, ?) = ? OR {column} = ?){only}",
        (after, n + 1, n + 1, f"{before}/", before),
    )
