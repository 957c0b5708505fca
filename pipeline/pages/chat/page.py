"""The chat page that ``pipeline serve`` shows: one file with its style and its scripts, which calls the server it came
from and nothing else."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from pipeline.pages.parts.render import html

HERE = Path(__file__).parent
SCRIPTS = ("words.js", "stream.js", "view.js", "main.js")
"""In this order: each uses the ones before it."""


def page(compare: str = "") -> str:
    """The page as HTML. ``compare``: the id of the model that the second column opens with; "" for one column."""
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    sheet = (HERE / "chat.css").read_text(encoding="utf-8")
    return html(
        HERE, "chat.html.j2", title="full-pipeline", compare=compare, script=Markup(script), sheet=Markup(sheet)
    )
