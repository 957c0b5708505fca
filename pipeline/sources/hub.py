"""Data sets of the Hugging Face hub as a source: ``hf://owner/dataset``, with a path or glob inside it, and
``@revision``.

The data set's own files (Parquet, JSONL …) are downloaded by ``huggingface_hub``, which comes with transformers, and
read by our readers; data sets that exist only as a loading script cannot be read. Digests are those the hub keeps of
every file. Needs a network.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from typing import Any

from pipeline.sources import Skipped, SourceFile
from pipeline.sources.kinds import format_of, suffixes
from storage.places import home


def list_hub(spec: str) -> tuple[list[SourceFile], list[Skipped]]:
    """Files that ``spec`` names at the revision's present commit, and those left out. Raises ValueError with the hub's
    own words."""
    repo, revision, inside = _parts(spec)
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ValueError(f"{spec}: needs the package huggingface_hub (pip install huggingface_hub)") from None
    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        info = api.dataset_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # huggingface_hub raises its own, requests', httpx' and OS errors
        raise ValueError(
            f"{spec}: the hub cannot be asked: {type(error).__name__}:"
            f" {str(error).splitlines()[0] if str(error) else ''}"
        ) from None
    entries = [e for e in info.siblings or [] if not e.rfilename.startswith(".") and _named(e.rfilename, inside)]
    named = [
        e
        for e in entries
        if format_of(e.rfilename) and os.path.basename(e.rfilename) not in ("README.md", "dataset_infos.json")
    ]
    if not named:
        raise ValueError(f"{spec}: no file of a known type among {len(entries)}; known are {suffixes()}")
    files = [SourceFile(e.rfilename, f"hf://{repo}@{info.sha}/{e.rfilename}", e.size or 0, _digest(e)) for e in named]
    return sorted(files, key=lambda f: f.relpath), sorted(
        Skipped(e.rfilename, "unknown file type") for e in entries if e not in named
    )


def _parts(spec: str) -> tuple[str, str | None, str]:
    """``owner/dataset``, revision, and the path inside."""
    owner, _, rest = spec.removeprefix("hf://").removeprefix("datasets/").partition("/")
    name, _, inside = rest.partition("/")
    name, _, revision = name.partition("@")
    if not owner or not name:
        raise ValueError(
            f"{spec}: write hf://owner/dataset, hf://owner/dataset/path or hf://owner/dataset@revision/path"
        )
    return f"{owner}/{name}", revision or None, inside.rstrip("/")


def _named(name: str, wanted: str) -> bool:
    return not wanted or name == wanted or name.startswith(wanted + "/") or fnmatch.fnmatchcase(name, wanted)


def _digest(entry: Any) -> str:
    lfs = entry.lfs
    known = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) if lfs else None
    return known or hashlib.sha256(f"git {entry.blob_id}".encode()).hexdigest()


def fetch_hub(location: str) -> str:
    """Download one file (once, into ``hub`` under PIPELINE_HOME) and return its local path. Raises OSError when that
    fails."""
    from huggingface_hub import hf_hub_download

    repo, revision, inside = _parts(location)
    cache = str(home() / "hub")
    try:
        return hf_hub_download(
            repo,
            inside,
            repo_type="dataset",
            revision=revision,
            endpoint=os.environ.get("HF_ENDPOINT"),
            cache_dir=cache,
        )
    except Exception as error:
        raise OSError(f"{location}: cannot be downloaded: {type(error).__name__}: {error}") from None
