"""Fill a page's template. Every page is one self-contained file: the style sheet is in it, nothing is fetched.

Whatever a template writes is escaped, HTML as HTML and Markdown as Markdown, because much of it is the text of other
people's documents. A name that a template asks for and the page does not give is an error, not an empty place.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

PARTS = Path(__file__).parent
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|&#~])")


def html(folder: Path, template: str, **data: object) -> str:
    """The page that ``template`` in ``folder`` makes of ``data``; it can use the parts that lie in this folder."""
    style = Markup((PARTS / "style.css").read_text(encoding="utf-8"))  # ours, and not escaped inside <style>
    return _writable(_environment(folder, True).get_template(template).render(style=style, **data))


def markdown(folder: Path, template: str, **data: object) -> str:
    """The Markdown that ``template`` in ``folder`` makes of ``data``."""
    return _writable(_environment(folder, False).get_template(template).render(**data))


def plain(value: object) -> str:
    """Text as one line of Markdown in which nothing is markup, HTML or the end of a table's cell."""
    return value if isinstance(value, Markup) else _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def code(text: str) -> Markup:
    """Text as a code span of Markdown that ends neither itself nor the cell of a table it stands in."""
    inner = re.sub(r"[`|\s]+", " ", text).strip()
    return Markup(f"`{inner}`" if inner else "")


def link(address: str, text: str) -> Markup:
    """A link in Markdown; what cannot stand in an address is percent-encoded."""
    return Markup(f"[{plain(text)}]({quote(address, safe=':/#?&=%@~+,;')})")


def _writable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can spell and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _environment(folder: Path, escape: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader([folder, PARTS]),
        autoescape=escape,
        finalize=None if escape else plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"code": code, "link": link}
    return made
